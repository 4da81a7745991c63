//! Counting and printing what `eval` measured: right answers by skill and size, and mean times.

use nestd_client::v1::Finished;
use serde_json::{Value, json};

use super::questions::Question;
use crate::render;

/// A question with the answer that came.
pub struct Asked<'a> {
    pub question: &'a Question,
    pub text: String,
    pub end: Finished,
}

impl Asked<'_> {
    /// Whether the answer is the expected one, white space around it aside.
    pub fn correct(&self) -> bool {
        self.text.trim() == self.question.answer.trim()
    }
}

/// What was counted, in the order in which it was asked.
#[derive(Default)]
pub struct Report {
    sizes: Vec<AtSize>,
}

struct AtSize {
    size: String,
    /// By skill; sorted, so that sizes are comparable whatever came first.
    skills: std::collections::BTreeMap<String, Score>,
    ttft: Ratio,
    decode: Ratio,
}

#[derive(Clone, Copy, Default)]
struct Score {
    correct: u32,
    asked: u32,
}

impl Score {
    fn accuracy(self) -> f64 {
        if self.asked == 0 { 0.0 } else { f64::from(self.correct) / f64::from(self.asked) }
    }

    fn json(self) -> Value {
        json!({ "correct": self.correct, "asked": self.asked, "accuracy": self.accuracy() })
    }

    fn cell(self) -> String {
        format!("{:5.1} % ({}/{})", self.accuracy() * 100.0, self.correct, self.asked)
    }
}

/// A sum over a sum: milliseconds over answers, tokens over seconds.
#[derive(Clone, Copy, Default)]
struct Ratio {
    above: f64,
    below: f64,
}

impl Ratio {
    fn add(&mut self, above: f64, below: f64) {
        self.above += above;
        self.below += below;
    }

    /// None where nothing was measured.
    fn value(self) -> Option<f64> {
        (self.below > 0.0).then(|| self.above / self.below)
    }

    fn cell(self, unit: &str) -> String {
        self.value().map_or_else(|| "-".into(), |value| format!("{value:5.1} {unit}"))
    }
}

impl AtSize {
    fn total(&self) -> Score {
        self.skills.values().fold(Score::default(), |total, score| Score {
            correct: total.correct + score.correct,
            asked: total.asked + score.asked,
        })
    }
}

impl Report {
    /// Counts one answer.
    pub fn count(&mut self, size: &str, asked: &Asked<'_>) {
        if self.sizes.last().is_none_or(|last| last.size != size) {
            self.sizes.push(AtSize {
                size: size.to_owned(),
                skills: std::collections::BTreeMap::new(),
                ttft: Ratio::default(),
                decode: Ratio::default(),
            });
        }
        let Some(at_size) = self.sizes.last_mut() else { return };
        let score = at_size.skills.entry(asked.question.skill.clone()).or_default();
        score.asked += 1;
        score.correct += u32::from(asked.correct());
        let timings = asked.end.timings.unwrap_or_default();
        // Zero is how the daemon says that it does not know.
        if timings.ttft_us > 0 {
            at_size.ttft.add(timings.ttft_us as f64 / 1000.0, 1.0);
        }
        if timings.decode_tokens_per_s > 0.0 {
            // Not the mean of the rates, in which an answer of two tokens would weigh as much as one
            // of two hundred.
            let tokens = asked.end.usage.unwrap_or_default().completion_tokens.saturating_sub(1);
            let tokens = f64::from(tokens);
            at_size.decode.add(tokens, tokens / timings.decode_tokens_per_s);
        }
    }

    /// A column for each size, a row for each skill.
    pub fn table(&self) -> String {
        let row = |name: &str, cell: &dyn Fn(&AtSize) -> String| {
            std::iter::once(name.to_owned()).chain(self.sizes.iter().map(cell)).collect()
        };
        let mut rows: Vec<Vec<String>> = vec![row("SKILL", &|at| at.size.clone())];
        let skills: std::collections::BTreeSet<_> =
            self.sizes.iter().flat_map(|at| at.skills.keys()).collect();
        let named = skills.iter().any(|skill| !skill.is_empty());
        for skill in skills.into_iter().filter(|_| named) {
            let name = if skill.is_empty() { "(none)" } else { skill };
            rows.push(row(name, &|at| at.skills.get(skill).copied().unwrap_or_default().cell()));
        }
        rows.push(row("all", &|at| at.total().cell()));
        rows.push(row("mean TTFT", &|at| at.ttft.cell("ms")));
        rows.push(row("speed", &|at| at.decode.cell("tokens/s")));
        render::table(&rows)
    }

    /// The same as an object.
    pub fn json(&self, file: &str, model: &str) -> Value {
        let sizes = self.sizes.iter().map(|at| {
            let skills: serde_json::Map<_, _> =
                at.skills.iter().map(|(skill, score)| (skill.clone(), score.json())).collect();
            json!({
                "size": at.size,
                "all": at.total().json(),
                "skills": skills,
                "mean_ttft_ms": at.ttft.value(),
                "decode_tokens_per_s": at.decode.value(),
            })
        });
        json!({ "file": file, "model": model, "sizes": sizes.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use nestd_client::v1::{Timings, Usage};

    use super::*;

    fn report() -> Report {
        let question = |skill: &str| Question {
            line: 1,
            skill: skill.into(),
            messages: Vec::new(),
            answer: "4".into(),
        };
        let mut report = Report::default();
        for (size, skill, text, ttft_us, tokens, decode_tokens_per_s) in [
            ("large", "sums", " 4\n", 1000, 11, 10.0),
            ("large", "facts", "4", 3000, 11, 5.0),
            ("small", "sums", "5", 0, 1, 0.0),
            ("small", "facts", "4", 500, 2, 10.0),
        ] {
            let timings = Timings { ttft_us, decode_tokens_per_s, ..Timings::default() };
            let usage = Usage { completion_tokens: tokens, ..Usage::default() };
            let end =
                Finished { timings: Some(timings), usage: Some(usage), ..Finished::default() };
            let question = question(skill);
            report.count(size, &Asked { question: &question, text: text.into(), end });
        }
        report
    }

    #[test]
    fn the_table_has_skills_and_sizes() {
        assert_eq!(
            report().table(),
            "\
SKILL      large           small
facts      100.0 % (1/1)   100.0 % (1/1)
sums       100.0 % (1/1)     0.0 % (0/1)
all        100.0 % (2/2)    50.0 % (1/2)
mean TTFT    2.0 ms          0.5 ms
speed        6.7 tokens/s   10.0 tokens/s
"
        );
    }

    #[test]
    fn the_object_has_the_numbers() {
        let value = report().json("q.jsonl", "demo");
        assert_eq!(value["sizes"][1]["all"]["accuracy"], 0.5);
        assert_eq!(value["sizes"][1]["skills"]["sums"]["correct"], 0);
        assert_eq!(value["sizes"][0]["mean_ttft_ms"], 2.0);
    }
}
