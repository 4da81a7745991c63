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
    ttft_ms: Mean,
    decode_tokens_per_s: Mean,
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

#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    /// Zero is how the daemon says that it does not know.
    fn add(&mut self, value: f64) {
        if value > 0.0 {
            self.sum += value;
            self.count += 1;
        }
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
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
                ttft_ms: Mean::default(),
                decode_tokens_per_s: Mean::default(),
            });
        }
        let Some(at_size) = self.sizes.last_mut() else { return };
        let score = at_size.skills.entry(asked.question.skill.clone()).or_default();
        score.asked += 1;
        score.correct += u32::from(asked.correct());
        let timings = asked.end.timings.unwrap_or_default();
        at_size.ttft_ms.add(timings.ttft_us as f64 / 1000.0);
        at_size.decode_tokens_per_s.add(timings.decode_tokens_per_s);
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
        let mean = |mean: Mean, unit: &str| match mean.value() {
            Some(value) => format!("{value:5.1} {unit}"),
            None => "-".into(),
        };
        rows.push(row("mean TTFT", &|at| mean(at.ttft_ms, "ms")));
        rows.push(row("mean speed", &|at| mean(at.decode_tokens_per_s, "tokens/s")));
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
                "mean_ttft_ms": at.ttft_ms.value(),
                "mean_decode_tokens_per_s": at.decode_tokens_per_s.value(),
            })
        });
        json!({ "file": file, "model": model, "sizes": sizes.collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use nestd_client::v1::Timings;

    use super::*;

    fn report() -> Report {
        let question = |skill: &str| Question {
            line: 1,
            skill: skill.into(),
            messages: Vec::new(),
            answer: "4".into(),
        };
        let timings =
            |ttft_us| Timings { ttft_us, decode_tokens_per_s: 10.0, ..Timings::default() };
        let mut report = Report::default();
        for (size, skill, text, ttft_us) in [
            ("large", "sums", " 4\n", 1000),
            ("large", "facts", "4", 3000),
            ("small", "sums", "5", 0),
            ("small", "facts", "4", 500),
        ] {
            let end = Finished { timings: Some(timings(ttft_us)), ..Finished::default() };
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
SKILL       large           small
facts       100.0 % (1/1)   100.0 % (1/1)
sums        100.0 % (1/1)     0.0 % (0/1)
all         100.0 % (2/2)    50.0 % (1/2)
mean TTFT     2.0 ms          0.5 ms
mean speed   10.0 tokens/s   10.0 tokens/s
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
