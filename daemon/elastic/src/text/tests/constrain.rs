use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::constrain::{Constraint, Error, Grammar, TrieEnv};
use super::super::sample::Draw;
use super::super::tokenizer::{Special, Tokenizer};
use super::tokenizer;

fn vocabulary() -> Arc<Tokenizer> {
    let words = [
        "\u{2581}",
        "\u{2581}\u{2581}",
        "{\"",
        "\":",
        "\u{2581}\"",
        "\",",
        "name",
        "age",
        "tr",
        "true",
        "false",
        "null",
        "[",
        "]",
        "}",
        "{",
        "12",
        "3",
        "0",
        "-",
        "\"}",
        "ü",
        "a",
        "b",
        "ab",
        "abc",
        ",\u{2581}\"",
        "un",
        "\"",
        "\\",
        "\\u",
    ];
    Arc::new(tokenizer(&["\n", "\t"], &words))
}

fn env() -> TrieEnv {
    TrieEnv::new(vocabulary())
}

/// An answer from random logits.
fn answer(env: &TrieEnv, grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
    let tokenizer = vocabulary();
    let mut constraint = Constraint::new(env, grammar).unwrap();
    let draw = Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed };
    let mut tokens = vec![];
    while !constraint.is_complete() {
        let mut logits = vec![0.0; tokenizer.len() as usize + 10];
        // Ends are likely where they are allowed, or the answer would never come to one.
        for token in [1, 5, 262 + 2 + 28, 262 + 2 + 14, 262 + 2 + 13, 262 + 2 + 20] {
            logits[token] = 4.0;
        }
        let allowed = constraint.allowed().unwrap();
        assert!(allowed.count() > 0);
        allowed.apply(&mut logits);
        let token = u32::try_from(draw.token(&logits, tokens.len()).unwrap()).unwrap();
        assert!(allowed.contains(token));
        constraint.accept(token).unwrap();
        tokens.push(token);
        if tokens.len() > most {
            return None;
        }
    }
    Some(tokenizer.decode(&tokens))
}

#[test]
fn a_schemas_answer_fits_the_schema() {
    let schema = r#"{"type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 300},
        "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["a", "b"]}}}}"#;
    let (env, grammar) = (env(), Grammar::JsonSchema(schema.into()));
    let mut finished = 0;
    for seed in 0..40 {
        let Some(text) = answer(&env, &grammar, seed, 300) else { continue };
        finished += 1;
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{text}");
        assert!(value["age"].as_u64().unwrap() <= 300, "{text}");
        for key in value.as_object().unwrap().keys() {
            assert!(["name", "age", "tags"].contains(&key.as_str()), "{text}");
        }
        for tag in value["tags"].as_array().into_iter().flatten() {
            assert!(["a", "b"].contains(&tag.as_str().unwrap()), "{text}");
        }
    }
    assert!(finished > 20, "{finished}");
}

#[test]
fn a_regular_expression_fits_whole() {
    let grammar = Grammar::Regex("(abc|ü)[0-9]{2} a+\n".into());
    let env = env();
    for seed in 0..20 {
        let Some(text) = answer(&env, &grammar, seed, 200) else { continue };
        let rest = text.strip_prefix("abc").or_else(|| text.strip_prefix("ü")).unwrap();
        assert!(rest.as_bytes()[..2].iter().all(u8::is_ascii_digit), "{text:?}");
        let rest = rest[2..].strip_prefix(" a").unwrap().trim_start_matches('a');
        assert_eq!(rest, "\n");
    }
}

#[test]
fn a_lark_grammar_is_followed() {
    let grammar =
        Grammar::Lark("start: pair+\npair: \"a\" inner \"b\"\ninner: \"\" | pair\n".into());
    let env = env();
    for seed in 0..20 {
        let Some(text) = answer(&env, &grammar, seed, 200) else { continue };
        let mut open = 0;
        for c in text.chars() {
            open += if c == 'a' { 1 } else { -1 };
            assert!(open >= 0, "{text}");
        }
        assert_eq!(open, 0, "{text}");
    }
}

#[test]
fn an_answer_ends_only_where_it_may() {
    let tokenizer = vocabulary();
    let mut constraint = Constraint::new(&env(), &Grammar::Regex("ab+".into())).unwrap();
    assert!(!constraint.allowed().unwrap().contains(5));
    assert_eq!(constraint.accept(5), Err(Error::Token(5)));
    assert_eq!(constraint.accept(u32::MAX), Err(Error::Token(u32::MAX)));
    let ab = tokenizer.encode("ab", Special::Text)[0];
    constraint.accept(ab).unwrap();
    assert!(!constraint.is_complete());
    let allowed = constraint.allowed().unwrap();
    assert!(allowed.contains(5) && allowed.contains(1) && !allowed.contains(2));
    constraint.accept(5).unwrap();
    assert!(constraint.is_complete());
    assert_eq!(constraint.accept(ab), Err(Error::Token(ab)));
    // What is complete by itself ends too.
    let mut constraint = Constraint::new(&env(), &Grammar::Regex("ab".into())).unwrap();
    constraint.accept(ab).unwrap();
    assert!(constraint.is_complete());
    let allowed = constraint.allowed().unwrap();
    assert!(allowed.contains(5) && !allowed.contains(ab));
    constraint.accept(1).unwrap();
}

#[test]
fn control_tokens_are_no_text() {
    let mut constraint = Constraint::new(&env(), &Grammar::Regex("(.|\n)*".into())).unwrap();
    let allowed = constraint.allowed().unwrap();
    for token in [0, 2, 3, 4] {
        assert!(!allowed.contains(token), "{token}");
    }
    assert!(allowed.contains(262));
}

#[test]
fn hostile_grammars_are_refused_in_time() {
    let env = env();
    Constraint::new(&env, &Grammar::Regex("a".into())).unwrap();
    let deep =
        |open: &str, close: &str, count: usize| open.repeat(count) + "{}" + &close.repeat(count);
    let chain = |count: usize| {
        let rule = |i: usize| format!("r{i}: r{} \"a\"", i + 1);
        let rules = (1..count).map(rule).collect::<Vec<_>>().join("\n");
        format!("start: r1\n{rules}\nr{count}: \"b\"\n")
    };
    let refs = |count: usize| {
        let part = |i: usize| format!("\"{i}\":{{\"$ref\":\"#/$defs/{}\"}}", i + 1);
        (0..count).map(part).collect::<Vec<_>>().join(",") + &format!(",\"{count}\":{{}}")
    };
    let any_of = |count: usize| {
        let part = |i: usize| {
            format!(
                "{{\"anyOf\":[{{\"properties\":{{\"a{i}\":{{\"type\":\"string\"}}}}}},{{\"minProperties\":{i}}},{{\"required\":[\"b{i}\"]}}]}}"
            )
        };
        (0..count).map(part).collect::<Vec<_>>().join(",")
    };
    for grammar in [
        Grammar::Regex("((a{1000}){1000}){1000}".into()),
        Grammar::Regex("(".repeat(100_000)),
        Grammar::Regex("[".into()),
        Grammar::Regex("x".repeat(300_000)),
        Grammar::JsonSchema("{".into()),
        Grammar::JsonSchema(deep("{\"not\":", "}", 50_000)),
        Grammar::JsonSchema(deep("{\"items\":", "}", 100)),
        Grammar::JsonSchema("{\"$ref\": \"#\"}".into()),
        Grammar::JsonSchema("{\"$ref\": \"http://example.org/x\"}".into()),
        Grammar::JsonSchema("{\"type\": \"nothing\"}".into()),
        Grammar::JsonSchema("{\"type\": \"string\", \"maxLength\": 100000000}".into()),
        Grammar::JsonSchema("{\"type\": \"array\", \"minItems\": 100000000}".into()),
        Grammar::Lark("start: start start | \"a\" |".into()),
        Grammar::Lark("start: nothing".into()),
        Grammar::Lark("start: \"a\"{1,100000000}".into()),
        Grammar::Lark(String::new()),
        Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000))),
        Grammar::Lark(format!("start: {}\"a\"{}", "[".repeat(30_000), "]".repeat(30_000))),
        Grammar::Lark(format!("start: {}\"a\"", "~".repeat(30_000))),
        Grammar::Lark(format!("start: A{}\nA: \"a\"", "?".repeat(30_000))),
        Grammar::Lark(chain(3_500)),
        Grammar::Lark(chain(3_500).replace('r', "R").replace("staRt", "start")),
        Grammar::Lark(format!("start: %json {}", deep("{\"not\":", "}", 20_000))),
        Grammar::Lark(format!("start: /{}a{}/", "(".repeat(30_000), ")".repeat(30_000))),
        Grammar::Regex(format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000))),
        Grammar::Regex("a".to_owned() + &"?".repeat(30_000)),
        Grammar::JsonSchema(format!("{{\"$ref\":\"#/$defs/0\",\"$defs\":{{{}}}}}", refs(4_000))),
        Grammar::JsonSchema(format!("{{\"allOf\":[{}]}}", any_of(24))),
        Grammar::JsonSchema(format!("{{\"oneOf\":[{}]}}", any_of(200))),
        Grammar::Lark("start: /(a|aa)*/ /(a|aa)*/ /(a|aa)*/ /(a|aa)*/ /(a|aa)*/".into()),
    ] {
        let shown: String = format!("{grammar:?}").chars().take(60).collect();
        let start = Instant::now();
        if let Ok(mut constraint) = Constraint::new(&env, &grammar) {
            for _ in 0..20 {
                let Ok(allowed) = constraint.allowed() else { break };
                let Some(token) = (0..600).find(|token| allowed.contains(*token)) else { break };
                if constraint.accept(token).is_err() || constraint.is_complete() {
                    break;
                }
            }
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{shown}: {:?}", start.elapsed());
    }
}

#[test]
fn the_tree_is_built_only_when_asked_for() {
    let env = env();
    assert!(format!("{env:?}").contains("false"));
    Constraint::new(&env, &Grammar::Regex("a".into())).unwrap();
    assert!(format!("{env:?}").contains("true"));
}
