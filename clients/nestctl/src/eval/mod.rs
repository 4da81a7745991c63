//! `nestctl eval`: asks every question of a file at each size, and reports how many answers are
//! right. `questions` reads the file, `report` counts and prints.

mod questions;
mod report;

use std::{
    fs::File,
    io::{BufWriter, Write},
    time::Duration,
};

use futures::{StreamExt, stream};
use nestd_client::{
    Client, Error,
    v1::{
        ErrorReason, Finished, GenerateRequest, GovernorReport, Sampling, State, StatusReport,
        Stopping, generate_event::Event,
    },
};
use serde_json::json;

use self::{
    questions::Question,
    report::{Asked, Report},
};
use crate::{args::EvalArgs, problem::Problem, render, render::Screen};

/// How long to wait where the daemon names no time.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Measures.
pub async fn eval(client: &Client, args: &EvalArgs, screen: &mut Screen) -> Result<(), Problem> {
    let questions = questions::read(&args.file)?;
    let mut answers = args.answers.as_ref().map(Answers::create).transpose()?;
    let before = settled(client, screen).await?;
    let governor = client.governor().await?;
    let sizes = sizes(&args.sizes, &before.available_sizes, &before.active_size)?;

    let mut eval = Eval { client, args, questions: &questions, report: Report::default() };
    let asked = tokio::select! {
        asked = eval.all(&sizes, screen, answers.as_mut()) => asked,
        _ = tokio::signal::ctrl_c() => Err(Problem::Interrupted),
    };
    screen.clear();
    // Nobody asked for another size than before, however this ended.
    let mut restored = Ok(());
    if sizes.iter().any(|size| *size != before.active_size) {
        restored = tokio::select! {
            restored = restore(client, &before.active_size, &governor, screen) => restored,
            _ = tokio::signal::ctrl_c() => Err(Problem::Interrupted),
        };
    }
    let model = asked?;
    restored?;
    if let Some(answers) = answers {
        answers.finish()?;
    }
    if screen.json {
        screen.value(&eval.report.json(&args.file.display().to_string(), &model))?;
    } else {
        screen.text(&eval.report.table())?;
    }
    Ok(())
}

/// Goes back to the size from before; a load pins it, which the pin from before puts right.
async fn restore(
    client: &Client,
    size: &str,
    governor: &GovernorReport,
    screen: &mut Screen,
) -> Result<(), Problem> {
    load(client, size, screen).await?;
    if governor.enabled {
        client.pin(&governor.pin).await?;
    }
    Ok(())
}

/// The status once no load is under way.
async fn settled(client: &Client, screen: &mut Screen) -> Result<StatusReport, Problem> {
    let mut reports = client.watch_status().await?;
    while let Some(report) = reports.next().await {
        let report = report?;
        if report.state() != State::Loading {
            return Ok(report);
        }
        screen.progress(&format!("loading the model: {}", render::bar(report.loading_fraction)));
    }
    // A stream of reports ends with an error, if at all.
    Ok(client.status().await?)
}

/// The sizes to ask at. No size stands for the one in use.
fn sizes(wanted: &[String], available: &[String], active: &str) -> Result<Vec<String>, Problem> {
    match wanted {
        [] => return Ok(vec![active.to_owned()]),
        [all] if all == "all" && !available.is_empty() => return Ok(available.to_vec()),
        _ => {}
    }
    if available.is_empty() {
        return Err(Problem::Usage(
            "no model is loaded, so there are no sizes: load one with `nestctl load`".into(),
        ));
    }
    match wanted.iter().find(|size| !available.contains(size)) {
        Some(size) => Err(Problem::Usage(format!(
            "there is no size {size:?}: the loaded model has {}",
            available.join(", ")
        ))),
        None => Ok(wanted.to_vec()),
    }
}

struct Eval<'a> {
    client: &'a Client,
    args: &'a EvalArgs,
    questions: &'a [Question],
    report: Report,
}

impl Eval<'_> {
    /// Asks everything at each size, and gives the model's name.
    async fn all(
        &mut self,
        sizes: &[String],
        screen: &mut Screen,
        mut answers: Option<&mut Answers>,
    ) -> Result<String, Problem> {
        let mut model = String::new();
        for size in sizes {
            let mut status = self.client.status().await?;
            if *size != status.active_size {
                load(self.client, size, screen).await?;
                status = self.client.status().await?;
            }
            let limit = status.limits.map_or(1, |limits| limits.parallel_requests);
            let parallel = self.args.parallel.unwrap_or(limit).max(1);
            self.at_size(size, parallel, screen, answers.as_deref_mut()).await?;
            model = status.model;
        }
        Ok(model)
    }

    async fn at_size(
        &mut self,
        size: &str,
        parallel: u32,
        screen: &mut Screen,
        mut answers: Option<&mut Answers>,
    ) -> Result<(), Problem> {
        let mut results = stream::iter(self.questions)
            .map(|question| ask(self.client, self.args, question))
            .buffer_unordered(usize::try_from(parallel).unwrap_or(1));
        let mut done = 0;
        while let Some(result) = results.next().await {
            let asked = result?;
            if let Some(answers) = answers.as_deref_mut() {
                answers.write(size, &asked)?;
            }
            self.report.count(size, &asked);
            done += 1;
            let fraction = f64::from(done) / self.questions.len() as f64;
            screen.progress(&format!(
                "size {size}: {} {done} of {}",
                render::bar(fraction),
                self.questions.len()
            ));
        }
        Ok(())
    }
}

/// Asks one question greedily, again while the daemon is busy.
async fn ask<'a>(
    client: &Client,
    args: &EvalArgs,
    question: &'a Question,
) -> Result<Asked<'a>, Problem> {
    let request = GenerateRequest {
        messages: question.messages.clone(),
        sampling: Some(Sampling { temperature: Some(0.0), ..Sampling::default() }),
        stopping: Some(Stopping {
            max_tokens: args.max_tokens.unwrap_or_default(),
            ..Stopping::default()
        }),
        ..GenerateRequest::default()
    };
    loop {
        match answer(client, request.clone()).await {
            Ok((text, end)) => return Ok(Asked { question, text, end }),
            Err(error) if passes(&error) => wait(&error).await,
            Err(error) => {
                let place = format!("{}:{}", args.file.display(), question.line);
                return Err(Problem::At(place, error));
            }
        }
    }
}

async fn answer(client: &Client, request: GenerateRequest) -> Result<(String, Finished), Error> {
    let mut events = client.generate(request).await?;
    let mut text = String::new();
    let mut finished = Finished::default();
    while let Some(event) = events.next().await {
        match event?.event {
            Some(Event::Text(piece)) => text += &piece.delta,
            Some(Event::Finished(end)) => finished = end,
            _ => {}
        }
    }
    Ok((text, finished))
}

/// Switches the loaded model to a size, again while another load is under way.
async fn load(client: &Client, size: &str, screen: &mut Screen) -> Result<(), Problem> {
    loop {
        match load_once(client, size, screen).await {
            Err(error) if passes(&error) => wait(&error).await,
            result => return Ok(result?),
        }
    }
}

async fn load_once(client: &Client, size: &str, screen: &mut Screen) -> Result<(), Error> {
    let mut fractions = client.load("", size).await?;
    while let Some(fraction) = fractions.next().await {
        screen.progress(&format!("loading size {size}: {}", render::bar(fraction?)));
    }
    Ok(())
}

fn passes(error: &Error) -> bool {
    matches!(error.reason(), Some(ErrorReason::QueueFull | ErrorReason::Busy))
}

async fn wait(error: &Error) {
    tokio::time::sleep(error.retry_after().unwrap_or(RETRY_AFTER)).await;
}

/// The file that each answer is written into.
struct Answers {
    file: BufWriter<File>,
    name: String,
}

impl Answers {
    fn create(path: &std::path::PathBuf) -> Result<Self, Problem> {
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Self { file: BufWriter::new(file), name }),
            Err(error) => Err(Problem::Usage(format!("{name} cannot be written: {error}"))),
        }
    }

    fn write(&mut self, size: &str, asked: &Asked<'_>) -> Result<(), Problem> {
        let line = json!({
            "size": size,
            "line": asked.question.line,
            "skill": asked.question.skill,
            "expected": asked.question.answer,
            "answer": asked.text,
            "correct": asked.correct(),
            "finished": crate::json::finished(&asked.end),
        });
        let written = writeln!(self.file, "{line}");
        written.map_err(|error| self.failed(&error))
    }

    fn finish(mut self) -> Result<(), Problem> {
        let flushed = self.file.flush();
        flushed.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Problem {
        Problem::Io(format!("{} cannot be written: {error}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_before_anything_is_loaded() {
        let available = ["large".to_owned(), "small".to_owned()];
        let text = |problem| match problem {
            Problem::Usage(text) => text,
            other => panic!("{other:?}"),
        };
        let pick = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|size| (*size).to_owned()).collect();
            sizes(&wanted, &available, "small").map_err(text)
        };
        assert_eq!(pick(&[]).unwrap(), ["small"]);
        assert_eq!(pick(&["all"]).unwrap(), available);
        assert_eq!(pick(&["large"]).unwrap(), ["large"]);
        assert_eq!(
            pick(&["medium"]).unwrap_err(),
            "there is no size \"medium\": the loaded model has large, small"
        );
        assert!(sizes(&["all".into()], &[], "").is_err());
    }
}
