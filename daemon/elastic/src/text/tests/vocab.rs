use super::super::tokenizer::Special::{self, Parse, Text};
use super::super::vocab::{Error, Vocabulary};
use super::{entries, load, tokenizer};
use crate::text::tokenizer::{Decoder, Tokenizer};

/// Ids of the small vocabulary: its control tokens, then 256 bytes.
const FIRST: u32 = 262;

fn byte(byte: u8) -> u32 {
    6 + u32::from(byte)
}

#[test]
fn the_highest_score_merges_first_and_the_leftmost_of_equals() {
    let vocab = tokenizer(&[], &["bc", "ab", "abc", "a", "b", "c", "aa", "aaa"]);
    let encode =
        |text: &str| vocab.encode(text, Text).iter().map(|id| id - FIRST).collect::<Vec<_>>();
    assert_eq!(encode("abc"), [2]);
    assert_eq!(encode("ab"), [1]);
    assert_eq!(encode("bcb"), [0, 4]);
    assert_eq!(encode("aaaaa"), [6, 7]);
    assert!(encode("").is_empty());
}

#[test]
fn what_has_no_piece_becomes_bytes() {
    let vocab = tokenizer(&[], &["a"]);
    assert_eq!(vocab.encode("aé", Text), [FIRST, byte(0xc3), byte(0xa9)]);
    // Every real vocabulary has a piece for a space. Bytes are decoded as they are.
    assert_eq!(vocab.encode(" ", Text), [byte(0xe2), byte(0x96), byte(0x81)]);
    assert_eq!(vocab.decode(&vocab.encode(" é", Text)), "\u{2581}é");
    let vocab = tokenizer(&[], &["a", "\u{2581}"]);
    assert_eq!(vocab.decode(&vocab.encode(" a é", Text)), " a é");
}

#[test]
fn whole_tokens_are_found_first_and_the_longest() {
    let vocab = tokenizer(&["<b>", "<b>x", "  ", "    "], &["a", "<b", "<", "b", ">", "\u{2581}"]);
    let ids = |text: &str, special: Special| vocab.encode(text, special);
    assert_eq!(ids("a<b>", Text), [FIRST + 4, FIRST]);
    assert_eq!(ids("<b>xa", Text), [FIRST + 1, FIRST + 4]);
    assert_eq!(ids("<ba", Text), [FIRST + 5, FIRST + 4]);
    // Files have runs of spaces as spaces.
    assert_eq!(ids("       ", Text), [FIRST + 3, FIRST + 2, FIRST + 9]);
    assert_eq!(ids("<eos>", Parse), [1]);
    assert!(!ids("<eos>", Text).contains(&1));
    assert_eq!(vocab.decode(&ids("<eos>", Text)), "<eos>");
    assert_eq!(vocab.control("<eos>"), Some(1));
    assert_eq!(vocab.control("<b>"), None);
    assert_eq!(vocab.control("<eos"), None);
}

/// The tokens are `SentencePiece`'s own (0.2, `tests/reference/tokenizer.py --spaces`).
#[test]
fn a_literal_space_mark_and_a_space_are_one_run() {
    let runs: Vec<String> = (2..8).map(|len| " ".repeat(len)).collect();
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    let normal = ["th", "the", "\u{2581}the", "\u{2581}", "t", "h", "e", "a", "b"];
    let vocab = tokenizer(&runs, &normal);
    for (text, pieces) in [
        ("▁▁", "▁▁"),
        ("  ", "▁▁"),
        ("▁ ▁", "▁▁▁"),
        ("▁▁ ", "▁▁▁"),
        (" ▁▁", "▁▁▁"),
        ("▁▁ ▁▁", "▁▁▁▁▁"),
        ("  ▁▁", "▁▁▁▁"),
        ("▁▁  ", "▁▁▁▁"),
        ("a▁▁b", "a|▁▁|b"),
        ("a ▁▁b", "a|▁▁▁|b"),
        ("▁ the", "▁▁|the"),
        (" ▁the", "▁▁|the"),
        ("▁▁ the", "▁▁▁|the"),
        ("▁▁▁▁▁▁▁ the", "▁▁▁▁▁▁▁|▁the"),
    ] {
        let tokens = vocab.encode(text, Text);
        let got = tokens.iter().map(|id| str::from_utf8(vocab.piece(*id)).unwrap());
        assert_eq!(got.collect::<Vec<_>>().join("|"), pieces, "{text:?}");
    }
}

#[test]
fn bytes_and_unused_pieces_are_never_read_from_text() {
    let mut entries = entries(&[], &["<", "0", "x"]);
    entries.push((b"un".to_vec(), 0.0, 5));
    let vocab = load(&entries, false).unwrap();
    assert_eq!(vocab.encode("un", Parse), [byte(b'u'), byte(b'n')]);
    assert_eq!(vocab.encode("<0x41>", Parse).len(), 6);
    assert_eq!(vocab.decode(&[FIRST + 3]), "");
}

#[test]
fn a_text_may_get_a_space_in_front() {
    let vocab = load(&entries(&[], &["\u{2581}a", "a", "\u{2581}"]), true).unwrap();
    assert_eq!(vocab.encode("a", Parse), [FIRST]);
    assert!(vocab.encode("", Parse).is_empty());
    assert_eq!(vocab.encode("<bos>a", Parse), [2, FIRST]);
}

#[test]
fn what_steers_is_control_whatever_the_file_says() {
    let mut entries = entries(&[], &[]);
    entries[1].2 = 1;
    entries[5].2 = 4;
    let vocab = load(&entries, false).unwrap();
    assert!(!vocab.encode("<eos><end_of_turn>", Text).iter().any(|id| vocab.ends(*id)));
    assert_eq!(vocab.encode("<eos><end_of_turn>", Parse), [1, 5]);
}

#[test]
fn turns_are_known_though_the_file_does_not_name_them() {
    let mut entries = entries(&[], &[]);
    entries[4].2 = 1;
    entries[5].2 = 4;
    let scores = vec![0.0; entries.len()];
    let kinds: Vec<u32> = entries.iter().map(|entry| entry.2).collect();
    let vocab = Tokenizer::new(Vocabulary {
        tokens: entries.iter().map(|entry| entry.0.as_slice()),
        scores: &scores,
        kinds: &kinds,
        bos: Some(2),
        eos: Some(1),
        eot: None,
        unk: None,
        add_space_prefix: false,
    });
    let vocab = vocab.unwrap();
    assert_eq!(vocab.eot(), Some(5));
    assert_eq!(vocab.encode("<start_of_turn><end_of_turn>", Parse), [4, 5]);
    assert_eq!(vocab.encode("<start_of_turn>", Text).len(), 15);
}

#[test]
fn broken_vocabularies_are_refused_and_say_where() {
    let refused = |change: &dyn Fn(&mut Vec<super::Entry>)| {
        let mut entries = entries(&["<b>"], &["a", "b"]);
        change(&mut entries);
        load(&entries, false).err().expect("taken")
    };
    let duplicate =
        |second, piece: &str| Error::Duplicate { first: 263, second, piece: piece.into() };
    assert_eq!(refused(&|e| e.push((b"a".to_vec(), 0.0, 1))), duplicate(265, "a"));
    assert_eq!(refused(&|e| e.push((b"a".to_vec(), 0.0, 4))), duplicate(265, "a"));
    let double = Error::Duplicate { first: 262, second: 265, piece: "<b>".into() };
    assert_eq!(refused(&|e| e.push((b"<b>".to_vec(), 0.0, 3))), double);
    assert_eq!(
        refused(&|e| e.push((vec![b'x'; 1025], 0.0, 1))),
        Error::TooLong { id: 265, bytes: 1025 }
    );
    assert_eq!(refused(&|e| e[264].1 = f32::NAN), Error::Score { id: 264 });
    assert_eq!(refused(&|e| e[264].2 = 7), Error::Kind { id: 264, kind: 7 });
    assert_eq!(refused(&|e| e[6 + 65].2 = 5), Error::MissingByte(65));
    assert_eq!(refused(&|e| e[264].2 = 6), Error::NoByte { id: 264, piece: "b".into() });
    assert!(matches!(refused(&|e| e.push((b"<0x41>".to_vec(), 0.0, 6))), Error::Duplicate { .. }));
    assert_eq!(refused(&|e| e.clear()), Error::Empty);
    assert_eq!(refused(&|e| e.truncate(5)), Error::MissingByte(0));
}

#[test]
fn lists_of_different_length_are_refused() {
    let token: &[u8] = b"a";
    let load = |tokens: usize, scores: usize, kinds: usize, bos: Option<u32>| {
        let tokens = std::iter::repeat_n(token, tokens);
        let (scores, kinds) = (vec![0.0; scores], vec![5; kinds]);
        let vocabulary = Vocabulary {
            tokens,
            scores: &scores,
            kinds: &kinds,
            bos,
            eos: None,
            eot: None,
            unk: None,
            add_space_prefix: false,
        };
        Tokenizer::new(vocabulary).err().expect("taken")
    };
    assert_eq!(load(2, 1, 2, None), Error::Lengths { tokens: 2, scores: 1, kinds: 2 });
    assert_eq!(load(1, 2, 1, None), Error::Lengths { tokens: 1, scores: 2, kinds: 1 });
    assert_eq!(load(usize::MAX, 0, 0, None), Error::TooManyEntries);
}

#[test]
fn a_special_token_exists() {
    let entries = entries(&[], &[]);
    let scores = vec![0.0; entries.len()];
    let kinds: Vec<u32> = entries.iter().map(|entry| entry.2).collect();
    let vocabulary = Vocabulary {
        tokens: entries.iter().map(|entry| entry.0.as_slice()),
        scores: &scores,
        kinds: &kinds,
        bos: None,
        eos: Some(262),
        eot: None,
        unk: None,
        add_space_prefix: false,
    };
    let error = Tokenizer::new(vocabulary).err().expect("taken");
    assert_eq!(error, Error::Outside { name: "eos", id: 262, tokens: 262 });
}

#[test]
fn broken_bytes_are_shown_once_they_are_known_to_be_broken() {
    let vocab = tokenizer(&[], &["a"]);
    let shown = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        let mut texts: Vec<String> = bytes.iter().map(|b| decoder.push(&vocab, byte(*b))).collect();
        texts.push(decoder.finish());
        texts
    };
    assert_eq!(shown(&[0xc3, 0xa9]), ["", "é", ""]);
    assert_eq!(shown(&[0xc3]), ["", "\u{fffd}"]);
    assert_eq!(shown(&[0xc3, b'a']), ["", "\u{fffd}a", ""]);
    assert_eq!(shown(&[0xff, 0xff]), ["\u{fffd}", "\u{fffd}", ""]);
    assert_eq!(shown(&[0xf0, 0x9f, 0x98, 0x80]), ["", "", "", "\u{1f600}", ""]);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.push(&vocab, byte(0xc3)), "");
    assert!(decoder.holds());
    assert_eq!(decoder.push(&vocab, FIRST), "\u{fffd}a");
    assert!(!decoder.holds());
}

#[test]
fn a_hostile_prompt_takes_no_time() {
    let vocab = tokenizer(
        &["\n", "\n\n", "  "],
        &["aa", "aaaa", "aaaaaaaa", "a", "th", "the", "\u{2581}the", "he", "\u{2581}"],
    );
    let start = std::time::Instant::now();
    for part in ["a", " ", "\n", "<", "the", "the ", "<start_of_turn", "é"] {
        let text = part.repeat((1 << 18) / part.len());
        assert_eq!(vocab.decode(&vocab.encode(&text, Parse)), text);
    }
    // Without optimization; quadratic would be hours.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
