//! Greedy answers of the demo model against those of the reference implementation, at every size, and
//! what sharing a step, switching, cutting back and copying do to them: nothing.

use crate::demo;
use nestd_elastic::chat::Chat;
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::sizes::Slice;
use nestd_elastic::tensor::Kind;
use nestd_elastic::text::sample::greedy;
use nestd_elastic::text::template::Turn;

struct Answers {
    model: Model,
    chat: Chat,
    runner: Runner,
    about: serde_json::Value,
}

/// A conversation that is being answered.
struct Talk {
    sequence: Sequence,
    pending: Vec<u32>,
    answer: Vec<u32>,
    done: bool,
}

impl Answers {
    fn new(path: &std::path::Path) -> Self {
        let model = Model::open(path).unwrap();
        let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
        let about = std::fs::read(demo::folder().join("references/references.json")).unwrap();
        Self {
            chat: Chat::read(&model).unwrap(),
            model,
            runner: Runner::new(pool, None),
            about: serde_json::from_slice(&about).unwrap(),
        }
    }

    fn chats(&self) -> Vec<serde_json::Value> {
        self.about["chats"].as_array().unwrap().clone()
    }

    fn sizes(&self) -> Vec<(String, Slice)> {
        let slice = |size| self.model.slice(size).unwrap();
        demo::ladder().iter().map(|size| (size.name.clone(), slice(size))).collect()
    }

    fn talk(&self, chat: &serde_json::Value) -> Talk {
        let messages = chat["messages"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let turns: Vec<_> =
            messages.iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect();
        let turns: Vec<_> = turns.iter().map(|(role, text)| Turn { role, text }).collect();
        let pending = self.chat.template.encode_chat(&self.chat.tokenizer, &turns).unwrap();
        assert_eq!(pending.len() as u64, chat["prompt_length"].as_u64().unwrap());
        let shape = Shape::new(self.model.config(), pending.len() + 64, Store::F16);
        Talk { sequence: Sequence::new(&shape), pending, answer: Vec::new(), done: false }
    }

    /// One step of all talks that are not done.
    fn step(&mut self, slice: &Slice, talks: &mut [Talk]) {
        let mut parts = Vec::new();
        for talk in talks.iter_mut().filter(|talk| !talk.done) {
            let (now, _) = talk.pending.split_at(talk.pending.len().min(SLACK));
            let whole = now.len() == talk.pending.len();
            let logits = if whole { Logits::Last } else { Logits::None };
            parts.push(Part { sequence: &mut talk.sequence, tokens: now, logits });
        }
        let logits = self.runner.step(&self.model, slice, &mut parts).unwrap();
        let mut rows = logits.chunks(self.model.vocabulary());
        for talk in talks.iter_mut().filter(|talk| !talk.done) {
            let read = talk.pending.len().min(SLACK);
            talk.pending.drain(..read);
            if talk.pending.is_empty() {
                let token = greedy(rows.next().unwrap()).unwrap() as u32;
                talk.done = self.chat.tokenizer.ends(token) || talk.answer.len() == 48;
                if !talk.done {
                    talk.answer.push(token);
                }
                talk.pending.push(token);
            }
        }
    }

    fn finish(&mut self, slice: &Slice, talks: &mut [Talk]) -> Vec<String> {
        while talks.iter().any(|talk| !talk.done) {
            self.step(slice, talks);
        }
        talks.iter().map(|talk| self.chat.tokenizer.decode(&talk.answer)).collect()
    }
}

fn expected(chats: &[serde_json::Value], size: &str) -> Vec<String> {
    let answer = |chat: &serde_json::Value| chat["greedy"][size].as_str().unwrap().to_owned();
    chats.iter().map(answer).collect()
}

/// All chats in one batch, at every size, in F32 and in the shipped file.
#[test]
fn answers_are_the_reference_s() {
    let folder = tempfile::tempdir().unwrap();
    let exact = folder.path().join("demo.gguf");
    demo::write_gguf(&exact, Kind::F32);
    for path in [exact, demo::folder().join("nestd-demo-Q8_0.gguf")] {
        let mut answers = Answers::new(&path);
        let chats = answers.chats();
        for (name, slice) in answers.sizes() {
            let mut talks: Vec<_> = chats.iter().map(|chat| answers.talk(chat)).collect();
            let said = answers.finish(&slice, &mut talks);
            assert_eq!(said, expected(&chats, &name), "{name} of {}", path.display());
        }
    }
}

/// Another size for every token of an answer changes the words no more than the sizes differ.
#[test]
fn a_switch_at_every_token_loses_nothing() {
    let mut answers = Answers::new(&demo::folder().join("nestd-demo-Q8_0.gguf"));
    let chats = answers.chats();
    let sizes = answers.sizes();
    let mut talks: Vec<_> = chats.iter().map(|chat| answers.talk(chat)).collect();
    let mut at = 0;
    while talks.iter().any(|talk| !talk.done) {
        answers.step(&sizes[at % sizes.len()].1, &mut talks);
        at += 1;
    }
    let right = expected(&chats, &sizes[0].0);
    for ((talk, chat), right) in talks.iter().zip(&chats).zip(right) {
        // All tokens are there: the prompt's and the answer's, but for the closing one.
        let prompt = chat["prompt_length"].as_u64().unwrap() as usize;
        assert_eq!(talk.sequence.len(), prompt + talk.answer.len());
        assert_eq!(answers.chat.tokenizer.decode(&talk.answer), right);
    }
}

/// A copy of a prompt's caches, cut back and continued, answers as a fresh one does.
#[test]
fn copies_and_cut_sequences_answer_the_same() {
    let mut answers = Answers::new(&demo::folder().join("nestd-demo-Q8_0.gguf"));
    let chats = answers.chats();
    let (name, slice) = answers.sizes().remove(0);
    let right = expected(&chats, &name);
    for (chat, right) in chats.iter().zip(right) {
        let mut talk = answers.talk(chat);
        let prompt = talk.pending.clone();
        let said = answers.finish(&slice, std::slice::from_mut(&mut talk));
        assert_eq!(said, std::slice::from_ref(&right));
        // Back to the prompt's last token but one, in caches of another capacity.
        let keep = prompt.len() - 2;
        let config = answers.model.config();
        let sequence = talk.sequence.copy(keep, prompt.len() + 49, config).unwrap();
        assert!(talk.sequence.truncate(keep), "the answer is shorter than the slack");
        let mut again =
            Talk { sequence, pending: prompt[keep..].to_vec(), answer: Vec::new(), done: false };
        assert_eq!(answers.finish(&slice, std::slice::from_mut(&mut again)), [right]);
    }
}

/// Caches that went to a file and came back in the middle of an answer change no token.
#[test]
fn caches_that_were_written_and_read_answer_the_same() {
    let mut answers = Answers::new(&demo::folder().join("nestd-demo-Q8_0.gguf"));
    let chats = answers.chats();
    let (name, slice) = answers.sizes().remove(0);
    for (chat, right) in chats.iter().zip(expected(&chats, &name)) {
        let mut talk = answers.talk(chat);
        while talk.answer.len() < 3 && !talk.done {
            answers.step(&slice, std::slice::from_mut(&mut talk));
        }
        let mut bytes = Vec::new();
        talk.sequence.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, 24 + talk.sequence.bytes(), "only what is in use");
        let config = answers.model.config();
        talk.sequence = Sequence::read_from(config, Store::F16, &mut bytes.as_slice()).unwrap();
        assert_eq!(answers.finish(&slice, std::slice::from_mut(&mut talk)), [right]);

        let config = answers.model.config();
        let cut = &bytes[..bytes.len() - 1];
        assert!(Sequence::read_from(config, Store::F16, &mut &cut[..]).is_err());
        for lie in [[0xff; 8], (config.context as u64 + 1).to_le_bytes()] {
            bytes[..8].copy_from_slice(&lie);
            assert!(Sequence::read_from(config, Store::F16, &mut bytes.as_slice()).is_err());
        }
    }
}
