//! Files that lie, are cut, or change while they are in use.

use std::path::Path;

use crate::demo;
use nestd_elastic::error::Error;
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::gguf::{Entry, Header, Writer};
use nestd_elastic::kv::{Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::tensor::Kind;

/// Two tensors of one row of 64 F32 and a few keys.
fn small() -> Vec<u8> {
    let mut writer = Writer::default();
    writer.pair("general.architecture", &Entry::String("gemma3n".into()));
    writer.pair("a.list", &Entry::Strings(vec![b"one".to_vec(), b"two".to_vec()]));
    writer.tensor("first", Kind::F32, &[64]);
    writer.tensor("second", Kind::Q8_0, &[64, 2]);
    let mut file = Vec::new();
    writer.write(&mut file, |_, _, len, out| out.write_all(&vec![7; len])).unwrap();
    file
}

fn find(file: &[u8], what: &[u8]) -> usize {
    file.windows(what.len()).position(|window| window == what).unwrap()
}

fn problem(file: &[u8]) -> String {
    Header::read(file).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read() {
    let file = small();
    let header = Header::read(&file).unwrap();
    assert_eq!(header.value("general.architecture").unwrap().as_str(), Some("gemma3n"));
    let list = header.value("a.list").unwrap().as_array().unwrap();
    assert_eq!(list.strings().collect::<Vec<_>>(), [b"one", b"two"]);
    let second = header.tensor("second").unwrap();
    assert_eq!((second.rows, second.cols, second.len), (2, 64, 136));
    assert_eq!(second.bytes(&file), [7; 136]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = small();
    for len in 0..file.len() - 24 {
        assert!(Header::read(&file[..len]).is_err(), "{len} of {} bytes", file.len());
    }
    // The last tensor ends 24 bytes before the file does, which is padded.
    assert!(problem(&file[..file.len() - 25]).starts_with("second: its 136 bytes"));
}

#[test]
fn no_changed_byte_of_the_header_panics() {
    let file = small();
    let end = Header::read(&file).unwrap().data_start();
    for at in 0..end {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] = value;
            if let Ok(header) = Header::read(&changed) {
                for (_, tensor) in header.tensors() {
                    assert_eq!(tensor.bytes(&changed).len(), tensor.len);
                }
                for (_, value) in header.pairs() {
                    if let Some(list) = value.as_array() {
                        assert!(list.scalars().count() <= list.len());
                        assert!(list.strings().count() <= list.len());
                    }
                }
            }
        }
    }
}

#[test]
fn lies_are_refused_by_name() {
    let file = small();
    let tensor = find(&file, b"second") + 6;
    // After the name: the number of dimensions, two of them, the kind, the offset.
    let (dims, kind, offset) = (tensor + 4, tensor + 20, tensor + 24);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = file.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        problem(&changed)
    };
    let long = u64::MAX.to_le_bytes();
    assert!(with(0, b"GGML").contains("does not begin with GGUF"));
    assert!(with(4, &9_u32.to_le_bytes()).contains("version 9"));
    assert!(with(8, &long).contains("tensors"));
    assert!(with(16, &long).contains("keys"));
    assert!(with(tensor, &5_u32.to_le_bytes()).starts_with("second: 5 dimensions"));
    assert!(with(dims, &0_u64.to_le_bytes()).starts_with("second: a dimension of 0"));
    assert!(with(dims, &long).starts_with("second: a dimension of"));
    assert!(with(dims, &63_u64.to_le_bytes()).starts_with("second: rows of 63"));
    assert!(with(dims + 8, &(1_u64 << 32).to_le_bytes()).starts_with("second: its"));
    assert!(with(offset, &0_u64.to_le_bytes()).starts_with("first: it overlaps second"));
    assert!(with(offset, &1_u64.to_le_bytes()).contains("not aligned"));
    assert!(with(offset, &(1_u64 << 40).to_le_bytes()).contains("past the end"));
    assert!(with(offset, &(u64::MAX - 31).to_le_bytes()).starts_with("second: its"));
    // A kind that is not known is no lie: the tensor is missed when it is needed.
    let mut changed = file.clone();
    changed[kind..kind + 4].copy_from_slice(&99_u32.to_le_bytes());
    assert!(Header::read(&changed).unwrap().tensor("second").is_none());
    let list = find(&file, b"a.list") + 6;
    assert!(with(list + 8, &long).starts_with("a.list: its value"));
    assert!(with(list, &77_u32.to_le_bytes()).starts_with("a.list: its value"));
}

#[test]
fn a_list_of_too_many_values_is_refused_before_it_is_read() {
    let mut writer = Writer::default();
    writer.pair("a.list", &Entry::Strings(Vec::new()));
    let mut file = Vec::new();
    writer.write(&mut file, |_, _, _, _| Ok(())).unwrap();
    let len = find(&file, b"a.list") + 6 + 8;
    // As a file of holes has them: every length is 0, and so is all that follows.
    file.resize(len + 8 + 8 * ((1 << 24) + 1), 0);
    for (count, fits) in [(0, true), (1000, true), (1 << 24, true), ((1 << 24) + 1, false)] {
        file[len..len + 8].copy_from_slice(&u64::to_le_bytes(count));
        match Header::read(&file) {
            Ok(header) => {
                let list = header.value("a.list").unwrap().as_array().unwrap();
                assert!(fits && list.len() as u64 == count, "{count}");
            }
            Err(error) => {
                let said = error.to_string();
                assert!(
                    !fits && said.starts_with("a.list: its value is cut off, too long"),
                    "{said}"
                );
            }
        }
    }
}

#[test]
fn a_header_has_an_end() {
    let mut writer = Writer::default();
    writer.pair("a.text", &Entry::String("x".into()));
    let mut head = Vec::new();
    writer.write(&mut head, |_, _, _, _| Ok(())).unwrap();
    let len = find(&head, b"a.text") + 6 + 4;
    // A file of holes, of which all would be text.
    let mut file = vec![0; (256 << 20) + 4096];
    file[..head.len()].copy_from_slice(&head);
    for (bytes, fits) in [(1000, true), (255 << 20, true), (256 << 20, false)] {
        file[len..len + 8].copy_from_slice(&u64::to_le_bytes(bytes));
        let header = Header::read(&file).map_err(|error| error.to_string());
        let text =
            header.as_ref().map(|header| header.value("a.text").unwrap().as_str().unwrap().len());
        match text {
            Ok(text) => assert!(fits && text as u64 == bytes, "{bytes}"),
            Err(said) => {
                assert!(!fits && said.starts_with("a.text: its value is cut off"), "{said}");
            }
        }
    }
}

#[test]
fn a_model_without_a_tensor_or_of_another_shape_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::Q8_0);
    let whole = std::fs::read(&path).unwrap();
    let open = |file: &[u8]| {
        std::fs::write(&path, file).unwrap();
        Model::open(&path).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(open(&whole), "");
    let mut changed = whole.clone();
    let name = find(&whole, b"blk.7.ffn_down.weight");
    changed[name + 4] = b'x';
    assert!(open(&changed).starts_with("blk.7.ffn_down.weight: the tensor is missing"));
    let mut changed = whole.clone();
    let key = find(&whole, b"gemma3n.embedding_length") + 24 + 4;
    changed[key] = 96;
    assert!(open(&changed).contains("token_embd.weight"), "{}", open(&changed));
    let mut changed = whole.clone();
    let key = find(&whole, b"gemma3n.altup.num_inputs");
    changed[key + 10] = b'x';
    assert_eq!(open(&changed), "gemma3n.altup.num_inputs: the key is missing");
    let mut changed = whole.clone();
    let norm = find(&whole, b"output_norm.weight") + 18;
    let offset = u64::from_le_bytes(changed[norm + 16..norm + 24].try_into().unwrap());
    let at = Header::read(&whole).unwrap().data_start() + usize::try_from(offset).unwrap();
    changed[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(open(&changed), "output_norm.weight: not all of its values are finite");
    // A rank beyond the width of the model, with a tensor that really is there: at the file's end.
    let mut changed = whole.clone();
    let laurel = find(&whole, b"blk.3.laurel_l.weight") + 21;
    let data_start = Header::read(&whole).unwrap().data_start();
    changed.resize(changed.len().next_multiple_of(32), 0);
    let offset = changed.len() - data_start;
    changed[laurel + 12..laurel + 20].copy_from_slice(&65_u64.to_le_bytes());
    changed[laurel + 24..laurel + 32].copy_from_slice(&(offset as u64).to_le_bytes());
    changed.resize(changed.len() + 65 * 64 * 4, 0);
    let rank = "blk.3.laurel_l.weight: its rank of 65 is above the model's width of 64";
    assert_eq!(open(&changed), rank);
    assert!(Model::open(Path::new("/nowhere.gguf")).is_err());
    assert!(Model::open(folder.path()).is_err());
    assert!(open(b"").contains("empty"));
}

#[test]
fn a_file_that_shrinks_in_use_ends_the_step_and_not_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::Q8_0);
    let model = Model::open(&path).unwrap();
    let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
    let mut runner = Runner::new(pool, None);
    let mut sequence = Sequence::new(&Shape::new(model.config(), 64, Store::F16));
    let full = model.full();
    let mut step = |sequence: &mut Sequence| {
        let part = Part { sequence, tokens: &[2, 5], logits: Logits::Last };
        runner.step(&model, &full, &mut [part]).map(|logits| logits.len())
    };
    assert_eq!(step(&mut sequence).unwrap(), 1536);
    // Nothing of the mapping is in memory any more, and then there is nothing to read.
    let all = 0..model.map().bytes().len();
    model.map().give_back(std::slice::from_ref(&all), &|| true);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(matches!(step(&mut sequence), Err(Error::FileChanged)));
    assert_eq!(sequence.len(), 2, "the sequence is as it was");
    // Reading past the end of what is left meets the handler.
    let sum: u64 = model.map().bytes().iter().map(|byte| u64::from(*byte)).sum();
    assert!(sum > 0);
    assert!(matches!(model.map().check(), Err(Error::FileChanged)));
}

#[test]
fn what_is_given_back_leaves_memory_and_comes_again() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::F32);
    let model = Model::open(&path).unwrap();
    let map = model.map();
    let all = 0..map.bytes().len();
    let sum = || map.bytes().iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let before = sum();
    let pages = map.resident(std::slice::from_ref(&all)).unwrap();
    assert!(pages >= all.len() as u64, "{pages} of {}", all.len());
    map.give_back(std::slice::from_ref(&all), &|| true);
    assert!(map.resident(std::slice::from_ref(&all)).unwrap() < 16384);
    assert_eq!(sum(), before);
}
