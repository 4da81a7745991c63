//! The file of questions: a JSON object a line. It is read and checked whole before anything is asked.

use std::{fs, path::Path};

use nestd_client::v1::Message;
use serde::Deserialize;

use crate::{
    conversation::{Speaker, Turn},
    problem::Problem,
};

/// One line of the file.
#[derive(Debug)]
pub struct Question {
    /// Its number, from 1.
    pub line: usize,
    /// What it is a question of; empty if the line does not say.
    pub skill: String,
    /// The conversation, a question last.
    pub messages: Vec<Message>,
    /// The right answer.
    pub answer: String,
}

#[derive(Deserialize)]
struct Line {
    messages: Vec<Turn>,
    answer: String,
    #[serde(default)]
    skill: String,
}

/// Reads the file, or says which line is bad.
pub fn read(path: &Path) -> Result<Vec<Question>, Problem> {
    let name = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Problem::Usage(format!("{name} cannot be read: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let questions = lines
        .map(|(index, line)| {
            let number = index + 1;
            question(number, line).map_err(|why| Problem::Usage(format!("{name}:{number}: {why}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if questions.is_empty() {
        return Err(Problem::Usage(format!("{name} has no questions")));
    }
    Ok(questions)
}

fn question(number: usize, line: &str) -> Result<Question, String> {
    // The parser counts lines too, and here there is only one.
    let line: Line = serde_json::from_str(line)
        .map_err(|error| error.to_string().replace(" at line 1 column ", " at column "))?;
    if !matches!(line.messages.last(), Some(Turn { role: Speaker::User, .. })) {
        return Err("the last of messages must be the user's".into());
    }
    let messages = line.messages.into_iter().map(Message::from).collect();
    Ok(Question { line: number, skill: line.skill, messages, answer: line.answer })
}

#[cfg(test)]
mod tests {
    use nestd_client::v1::Role;

    use super::*;

    fn problem(line: &str) -> String {
        question(1, line).unwrap_err()
    }

    #[test]
    fn a_line_is_a_conversation_with_its_answer() {
        let line = r#"{"messages": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 2?"}], "answer": "4", "skill": "sums", "id": 9}"#;
        let question = question(3, &line.replace('\n', " ")).unwrap();
        assert_eq!((question.line, question.answer.as_str()), (3, "4"));
        assert_eq!(question.skill, "sums");
        assert_eq!(question.messages[1].role(), Role::User);
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        assert_eq!(problem("{"), "EOF while parsing an object at column 1");
        let user = r#"[{"role": "user", "content": "?"}]"#;
        assert!(problem(&format!(r#"{{"messages": {user}}}"#)).contains("`answer`"));
        assert!(problem(r#"{"messages": [], "answer": ""}"#).contains("last of messages"));
        let robot = r#"{"messages": [{"role": "robot", "content": "?"}], "answer": ""}"#;
        assert!(problem(robot).contains("unknown variant `robot`"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let problem = read(Path::new("/nonexistent.jsonl")).unwrap_err();
        assert!(matches!(problem, Problem::Usage(text)
            if text.starts_with("/nonexistent.jsonl cannot be read")));
    }
}
