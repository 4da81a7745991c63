//! What the fuzz targets in `fuzz/` run: each takes bytes as a file or a client may send them to the decoder
//! that meets them, and asserts what must hold for whatever is accepted. [`seeds`] are well-formed inputs to
//! begin with; the tests run them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc, reason = "a panic is a find")]

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::chat::Chat;
use crate::config::Config;
use crate::forward::{Logits, Part, Runner};
use crate::gguf::Header;
use crate::kv::{SLACK, Sequence, Shape, Store};
use crate::ladder::sizes_of;
use crate::model::Model;
use crate::pool::{Pool, Settings};
use crate::sidefile::SideFile;
use crate::sizes;
use crate::synth::Quant;
use crate::text::constrain::{Constraint, Grammar, TrieEnv};
use crate::text::stop::Stops;
use crate::text::template::{Template, Turn};
use crate::text::tokenizer::{Kind, Special, Tokenizer, Vocabulary};

const SPACE: &str = "\u{2581}";

/// A target with its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: [Target; 10] = [
    ("gguf_header", gguf_header),
    ("gguf_model", gguf_model),
    ("side_file", side_file),
    ("kv_file", kv_file),
    ("vocabulary", vocabulary),
    ("chat", chat),
    ("template", template),
    ("grammar", grammar),
    ("sizes", sizes),
    ("stops", stops),
];

/// A file's header and the model's shape in it.
pub fn gguf_header(bytes: &[u8]) {
    let Ok(header) = Header::read(bytes) else { return };
    for (_, tensor) in header.tensors() {
        assert_eq!(tensor.bytes(bytes).len(), tensor.len);
        assert!(tensor.matrix(bytes, 0).is_some());
    }
    for (_, value) in header.pairs() {
        if let Some(list) = value.as_array() {
            assert!(list.scalars().count() <= list.len());
            assert!(list.strings().count() <= list.len());
        }
    }
    let _ = Config::read(&header);
}

/// A whole file: tensors, vocabulary, template; and two steps with what was accepted.
pub fn gguf_model(bytes: &[u8]) {
    in_a_file(bytes, |path| {
        let Ok(model) = Model::open(path) else { return };
        let _ = Chat::read(&model);
        for size in sizes_of(path, model.config()).unwrap_or_default() {
            let _ = model.slice(&size);
        }
        let mut sequence = Sequence::new(&Shape::new(model.config(), 3, Store::F16));
        for tokens in [&[0_u32, 1][..], &[0]] {
            step(&model, &mut sequence, tokens);
        }
    });
}

fn step(model: &Model, sequence: &mut Sequence, tokens: &[u32]) {
    thread_local! {
        static RUNNER: RefCell<Runner> = RefCell::new(Runner::new(
            Pool::new(&Settings { threads: 1, ..Settings::default() }).unwrap(),
            None,
        ));
    }
    let part = Part { sequence, tokens, logits: Logits::Last };
    RUNNER.with_borrow_mut(|runner| {
        let _ = runner.step(model, &model.full(), &mut [part]).map(|logits| logits.len());
    });
}

/// The side file of a model. After an even byte: what is put over it from its beginning, by exclusive or. After
/// an odd one: what is put over the columns, and the checksum is made right.
pub fn side_file(bytes: &[u8]) {
    static MODEL: OnceLock<Vec<u8>> = OnceLock::new();
    let Some((kind, damage)) = bytes.split_first() else { return };
    in_a_file(MODEL.get_or_init(|| tiny_model(Quant::Q8_0)), |path| {
        let side = path.with_extension("side");
        let model = Model::open(path).unwrap();
        assert!(SideFile::write(&side, &model).unwrap());
        let mut file = std::fs::read(&side).unwrap();
        let (head, columns) = file.split_at_mut(4096);
        if kind % 2 == 0 {
            file.resize(file.len().max(damage.len()), 0);
            file.iter_mut().zip(damage).for_each(|(byte, damage)| *byte ^= damage);
        } else {
            columns.iter_mut().zip(damage).for_each(|(byte, damage)| *byte ^= damage);
            head[40..44].copy_from_slice(&crc32fast::hash(columns).to_le_bytes());
        }
        std::fs::write(&side, &file).unwrap();
        let Some(side) = SideFile::open(&side, &model).unwrap() else { return };
        let model = model.with_side(side);
        let mut sequence = Sequence::new(&Shape::new(model.config(), 3, Store::F16));
        for tokens in [&[0_u32, 1][..], &[0]] {
            step(&model, &mut sequence, tokens);
        }
    });
}

/// The caches of a sequence, the form of the store in front. What is read is written as it was, and goes on.
pub fn kv_file(bytes: &[u8]) {
    thread_local! {
        static MODEL: Model = {
            let mut model = None;
            in_a_file(&tiny_model(Quant::Q8_0), |path| model = Model::open(path).ok());
            model.unwrap()
        };
    }
    let Some((store, file)) = bytes.split_first() else { return };
    let store = [Store::F32, Store::F16, Store::Q8_0][usize::from(store % 3)];
    MODEL.with(|model| {
        let config = model.config();
        let mut rest = file;
        let Ok(mut sequence) = Sequence::read_from(config, store, &mut rest) else { return };
        let mut again = Vec::new();
        sequence.write_to(&mut again).unwrap();
        assert_eq!(again, file[..file.len() - rest.len()]);
        assert!(sequence.bytes() <= again.len() as u64);
        let (len, shortest) = (sequence.len(), sequence.shortest());
        assert!(shortest <= len && len <= sequence.capacity());
        // A length that it can be cut back to has the window before it, whole.
        let lost = len.saturating_sub(config.window + SLACK);
        assert!(lost == 0 || shortest >= len.min(lost + config.window));
        let copy = sequence.copy(len, config.context, config).unwrap();
        assert_eq!((copy.len(), copy.shortest()), (len, shortest));
        assert!(sequence.truncate(shortest));
        step(model, &mut sequence, &[0, 1]);
    });
}

/// Lines of a piece each, its type in front, and after a zero a text. Bytes have tokens in any case, and
/// so has a space: where it has none it becomes bytes, and those read U+2581.
pub fn vocabulary(bytes: &[u8]) {
    let (pieces, text) = halves(bytes);
    let mut entries = byte_tokens();
    entries.push((SPACE.as_bytes().to_vec(), 1));
    for line in pieces.split(|byte| *byte == b'\n') {
        let Some((kind, piece)) = line.split_first() else { continue };
        entries.push((piece.to_vec(), u32::from(kind.wrapping_sub(b'0'))));
    }
    let Some(tokenizer) = tokenizer(&entries, None) else { return };
    let text = String::from_utf8_lossy(text);
    for special in [Special::Text, Special::Parse] {
        let tokens = tokenizer.encode(&text, special);
        assert!(tokens.iter().all(|id| *id < tokenizer.len()));
        let decoded = tokenizer.decode(&tokens);
        if special == Special::Text {
            assert_eq!(decoded, text.replace(SPACE, " "));
        }
    }
}

/// Turns with a zero between them, in Gemma's template. No text may bring in a control token.
pub fn chat(bytes: &[u8]) {
    let texts: Vec<_> = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
    let turns: Vec<_> =
        texts.iter().enumerate().map(|(at, text)| Turn { role: role(at), text }).collect();
    let template = Template::gemma("<bos>", "<eos>").unwrap();
    let Ok(tokens) = template.encode_chat(small(), &turns) else { return };
    let control = tokens.iter().filter(|id| small().kind(**id) == Some(Kind::Control)).count();
    assert_eq!(control, 1 + 2 * turns.len() + 1);
}

/// A chat template, and after a zero a text for it.
pub fn template(bytes: &[u8]) {
    let (source, text) = halves(bytes);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = Template::new(source, "<bos>", "<eos>") else { return };
    let text = String::from_utf8_lossy(text);
    let turns = [Turn { role: "system", text: "Be short." }, Turn { role: "user", text: &text }];
    let _ = template.encode_chat(small(), &turns);
}

/// A grammar, its kind in front, followed for some tokens.
pub fn grammar(bytes: &[u8]) {
    static TRIE: OnceLock<TrieEnv> = OnceLock::new();
    let trie = TRIE.get_or_init(|| TrieEnv::new(Arc::new(small_tokenizer())));
    let Some((kind, text)) = bytes.split_first() else { return };
    let Ok(text) = String::from_utf8(text.to_vec()) else { return };
    let grammar = match kind % 3 {
        0 => Grammar::JsonSchema(text),
        1 => Grammar::Regex(text),
        _ => Grammar::Lark(text),
    };
    let Ok(mut constraint) = Constraint::new(trie, &grammar) else { return };
    for step in 0..16 {
        let Ok(allowed) = constraint.allowed() else { return };
        let all: Vec<u32> = (0..small().len()).filter(|id| allowed.contains(*id)).collect();
        let Some(token) = all.get((step * 7) % all.len().max(1)) else { return };
        if constraint.accept(*token).is_err() || constraint.is_complete() {
            return;
        }
    }
}

/// A table of sizes. What is accepted reads the same after it was written.
pub fn sizes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let shape = sizes::Shape { widths: vec![96; 4], first_shared_layer: 2 };
    if let Ok(sizes) = sizes::parse(text, &shape) {
        assert_eq!(sizes::parse(&sizes::write(&sizes), &shape).as_ref(), Ok(&sizes));
    }
}

/// Stop strings in lines, and after a zero an answer, in pieces with zeros between them.
pub fn stops(bytes: &[u8]) {
    let (strings, answer) = halves(bytes);
    let strings = String::from_utf8_lossy(strings);
    let pieces: Vec<_> = answer.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let mut stops = Stops::new(strings.lines().map(str::to_owned).collect());
    let mut shown = String::new();
    for piece in &pieces {
        let passed = stops.push(piece);
        shown.push_str(&passed.text);
        if passed.stopped {
            assert!(pieces.concat().starts_with(&shown));
            return;
        }
    }
    shown.push_str(&stops.finish());
    assert_eq!(shown, pieces.concat());
}

/// Well-formed inputs, each for the target of that name.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let table = "name,# Layers,# Effective Params (B),MMLU PT accuracy,FFN Hidden Dims,Layers Skipped\n\
                 tiny,3,0.5,,\"[9_6, 24*2, 1 * 2 * 8]\",[3]\n";
    let schema = br#"0{"type":"object","properties":{"a":{"enum":[1,"b"]},"c":{"type":"array",
        "items":{"type":"integer"},"maxItems":3}},"required":["a"]}"#;
    let of_turns = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\
                    {{ '<start_of_turn>' + m['content'] | trim }}{% endif %}{% endfor %}\0hi <end_of_turn>";
    let model = tiny_model(Quant::F16);
    vec![
        ("gguf_header", model[..Header::read(&model).unwrap().data_start()].to_vec()),
        ("gguf_model", model),
        ("side_file", vec![0; 64]),
        ("side_file", vec![1, 0, 0, 0, 0xff]),
        ("kv_file", caches(0, 8, 5)),
        ("kv_file", caches(1, 256, 180)),
        ("kv_file", caches(2, 256, 256)),
        ("vocabulary", "1a\n1b\n1ab\n4  \n3<c>\0ab  <c>\u{fc}".into()),
        ("chat", b"hi <end_of_turn>\0<start_of_turn>user\n".to_vec()),
        ("template", of_turns.into()),
        ("grammar", schema.to_vec()),
        ("grammar", b"1[a-z]{2,5}(true|[0-9]+)".to_vec()),
        ("grammar", b"2start: \"a\" b+\nb: /[0-9]+/ | \"(\" b \")\"\n".to_vec()),
        ("sizes", table.into()),
        ("stops", b"end\nstop\0the e\0nd".to_vec()),
    ]
}

/// The caches of a sequence of `len` tokens, of any values.
fn caches(store: u8, capacity: u64, len: u64) -> Vec<u8> {
    let mut file = vec![store];
    let ring = 4 + SLACK as u64;
    for number in [capacity, len, len.saturating_sub(ring.min(capacity))] {
        file.extend(number.to_le_bytes());
    }
    let row = [32 * 4, 32 * 2, 34][usize::from(store)];
    // Of two layers with caches of their own, the first slides.
    let rows = 2 * (len.min(ring) + len.min(ring));
    file.extend((0..rows * row).map(|at| (at % 251) as u8));
    file
}

fn tiny_model(quant: Quant) -> Vec<u8> {
    let shape = crate::synth::Shape {
        layers: 2,
        shared_kv: 0,
        sparse: 1,
        hidden: 32,
        width: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        ple: 32,
        laurel: 32,
        altup: 2,
        window: 4,
        context: 256,
        vocabulary: 512,
        ..crate::synth::Shape::SMALL
    };
    let mut file = Vec::new();
    in_a_file(&[], |path| {
        crate::synth::write(path, &shape, quant, 1, &mut |_, _| {}).unwrap();
        file = std::fs::read(path).unwrap();
    });
    file
}

fn in_a_file(bytes: &[u8], run: impl FnOnce(&Path)) {
    let name = format!("nestd-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("file");
    std::fs::write(&path, bytes).unwrap();
    run(&path);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What is in front of the first zero, and what is behind it.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}

fn byte_tokens() -> Vec<(Vec<u8>, u32)> {
    (0..256).map(|byte| (format!("<0x{byte:02X}>").into_bytes(), 6)).collect()
}

fn tokenizer(entries: &[(Vec<u8>, u32)], specials: Option<(u32, u32)>) -> Option<Tokenizer> {
    let scores: Vec<f32> = (0..entries.len()).map(|rank| -(rank as f32)).collect();
    let kinds: Vec<u32> = entries.iter().map(|(_, kind)| *kind).collect();
    let vocabulary = Vocabulary {
        tokens: entries.iter().map(|(piece, _)| piece.as_slice()),
        scores: &scores,
        kinds: &kinds,
        bos: specials.map(|(bos, _)| bos),
        eos: specials.map(|(_, eos)| eos),
        eot: None,
        unk: None,
        add_space_prefix: false,
    };
    Tokenizer::new(vocabulary).ok()
}

fn small() -> &'static Tokenizer {
    static SMALL: OnceLock<Tokenizer> = OnceLock::new();
    SMALL.get_or_init(small_tokenizer)
}

/// Gemma's control tokens, bytes, and some pieces.
fn small_tokenizer() -> Tokenizer {
    let control = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"];
    let mut entries: Vec<_> = control.iter().map(|piece| (piece.as_bytes().to_vec(), 3)).collect();
    entries.extend(byte_tokens());
    entries.push((b"\n".to_vec(), 4));
    let normal =
        ["\u{2581}", "{\"", "\":", "\"}", "\"", "a", "b", "ab", "true", "12", "<", "start"];
    entries.extend(normal.iter().map(|piece| (piece.as_bytes().to_vec(), 1)));
    tokenizer(&entries, Some((0, 1))).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_and_every_cut_of_it_is_taken_or_refused() {
        for (name, seed) in seeds() {
            let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
            run(&seed);
            for len in (0..seed.len()).step_by(seed.len() / 16 + 1) {
                run(&seed[..len]);
            }
        }
    }

    /// Found by fuzzing: a user-defined piece that is no whole characters matched inside of one, and what
    /// stood before it was lost.
    #[test]
    fn a_piece_that_is_a_part_of_a_character_loses_no_text() {
        vocabulary(b"4 \x1c\n3\n4\xe2\x96\x00s  \x81\x02\na\xa4a   \xc4\xdc\xba\xba\xba3\xc1");
    }

    /// It could be cut back to where its rings were written over.
    #[test]
    fn caches_do_not_have_more_than_their_rings() {
        let mut file = caches(1, 256, 180);
        kv_file(&file);
        file[17..25].fill(0);
        kv_file(&file);
    }

    #[test]
    fn the_seeds_of_caches_and_of_a_side_file_are_taken() {
        in_a_file(&tiny_model(Quant::Q8_0), |path| {
            let model = Model::open(path).unwrap();
            for (store, capacity, len) in
                [(Store::F32, 8, 5), (Store::F16, 256, 180), (Store::Q8_0, 256, 256)]
            {
                let file = caches(store as u8, capacity, len);
                let read = Sequence::read_from(model.config(), store, &mut &file[1..]).unwrap();
                assert_eq!(read.len() as u64, len);
            }
            let side = path.with_extension("side");
            assert!(SideFile::write(&side, &model).unwrap());
            assert!(SideFile::open(&side, &model).unwrap().unwrap().columns(0).is_some());
        });
    }

    #[test]
    fn the_models_seed_is_a_model() {
        in_a_file(&tiny_model(Quant::F16), |path| {
            Chat::read(&Model::open(path).unwrap()).unwrap();
        });
    }
}
