//! Models of random weights: whole, the same for the same seed, and with numbers that stay sane.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use nestd_elastic::chat::Chat;
use nestd_elastic::gguf::Header;
use nestd_elastic::kernels;
use nestd_elastic::model::Model;
use nestd_elastic::synth::{self, Quant, Shape};
use nestd_elastic::tensor::Kind;
use nestd_elastic::text::template::Turn;
use nestd_elastic::text::tokenizer::Special;

const QUANTS: [Quant; 4] = [Quant::Q4_0, Quant::Q4_K, Quant::Q8_0, Quant::F16];

/// Quick to write.
const FEW: Shape = Shape { layers: 8, shared_kv: 3, ..Shape::SMALL };

fn write(path: &Path, shape: &Shape, quant: Quant, seed: u64) {
    synth::write(path, shape, quant, seed, &mut |_, _| {}).unwrap();
}

#[test]
fn every_kind_is_opened_and_its_weights_are_as_wide_as_they_should_be() {
    let folder = tempfile::tempdir().unwrap();
    for quant in QUANTS {
        let path = folder.path().join(format!("{quant:?}.gguf"));
        let mut told = Vec::new();
        synth::write(&path, &FEW, quant, 1, &mut |done, all| told.push((done, all))).unwrap();
        assert!(told.is_sorted() && told.last().is_some_and(|(done, all)| done == all));
        let model = Model::open(&path).unwrap();
        assert_eq!((model.config().layers(), model.config().own_kv), (8, 5));
        assert_eq!(model.vocabulary(), 1024);

        let file = model.map().bytes();
        let header = Header::read(file).unwrap();
        let left = file.len() as u64 - header.data_start() as u64;
        assert_eq!(left, told[0].1.next_multiple_of(32), "the size is known before");
        for (name, tensor) in header.tensors() {
            let mut values = vec![0.0; tensor.count * tensor.rows * tensor.cols];
            kernels::dequantize(tensor.kind, tensor.bytes(file), &mut values);
            let count = values.len() as f32;
            let mean = values.iter().sum::<f32>() / count;
            let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / count).sqrt();
            if tensor.kind == Kind::F32 {
                assert!(values.iter().all(|value| value.abs() < 2.0), "{name}");
                continue;
            }
            let cols = if name.starts_with("per_layer_token_embd") { 256 } else { tensor.cols };
            let ratio = spread * (cols as f32).sqrt();
            // A tensor of few blocks has few scales.
            let near = if count > 1e6 { 0.02 } else { 0.1 };
            assert!((ratio - 1.0).abs() < near, "{quant:?} {name}: {ratio}");
            assert!(mean.abs() < near * spread, "{quant:?} {name}: mean {mean} of {spread}");
        }
    }
}

#[test]
fn a_seed_makes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let make = |seed| {
        let path = folder.path().join("model.gguf");
        write(&path, &FEW, Quant::Q4_0, seed);
        std::fs::read(path).unwrap()
    };
    let first = make(7);
    assert!(first == make(7));
    assert!(first != make(8));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no half files are left");
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let path = Path::new("/nonexistent/model.gguf");
    let error = synth::write(path, &Shape::SMALL, Quant::Q4_0, 1, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/model.gguf: "), "{error}");
}

#[test]
fn real_dimensions_are_those_published() {
    // All parameters of the text model, in millions; the embedding is the output matrix too.
    assert_eq!(Shape::E4B.bytes(Quant::F16) / 2_000_000, 6_869);
    assert_eq!(Shape::E2B.bytes(Quant::F16) / 2_000_000, 4_458);
    for shape in [Shape::E2B, Shape::E4B] {
        assert_eq!((shape.layers - shape.shared_kv, shape.vocabulary), (20, 262_400));
    }
}

#[test]
fn a_real_vocabulary_tokenizes_text() {
    // Everything small but the vocabulary.
    let shape = Shape { vocabulary: 262_400, ple: 32, layers: 8, shared_kv: 3, ..Shape::SMALL };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &shape, Quant::Q8_0, 1);
    let Chat { tokenizer, template, .. } = Chat::read(&Model::open(&path).unwrap()).unwrap();
    assert_eq!(tokenizer.len(), 262_400);
    let text = "Which rivers run through Vienna?\n\nDonau und Wien – 多瑙河 🏞";
    let tokens = tokenizer.encode(text, Special::Text);
    assert_eq!(tokenizer.decode(&tokens), text);
    assert!(tokens.len() < text.chars().count() * 2 / 3, "{tokens:?}");
    let turns = [Turn { role: "system", text: "Be brief." }, Turn { role: "user", text: "Hi" }];
    let prompt = template.render(&turns, true).unwrap();
    let wanted = "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(prompt.trim_start_matches("<bos>"), wanted);
    let tokens = template.encode_chat(&tokenizer, &turns).unwrap();
    assert_eq!((tokens[0], tokens[1]), (2, 105));
    assert_eq!(tokens.iter().filter(|token| **token == 106).count(), 1);
}
