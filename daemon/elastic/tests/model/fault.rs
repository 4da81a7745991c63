//! Pages that are gone when a step reads them, and the SIGBUS that has nothing to do with that.

#![allow(unsafe_code, reason = "a mapping of a file that is cut, and the signal")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;
use nestd_elastic::error::Error;
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::tensor::Kind;
use nix::libc;

use crate::demo;

/// Computes a step, during which `meddle` is called after each layer with its number.
fn step(
    model: &Model,
    sequence: &mut Sequence,
    tokens: &[u32],
    meddle: impl Fn(usize) + Send + Sync + 'static,
) -> Result<Vec<f32>, Error> {
    let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
    let layer = AtomicUsize::new(0);
    let mut runner = Runner::new(pool, None).watched(move || {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        assert!(name.starts_with("nestd-compute-"), "{name}");
        meddle(layer.fetch_add(1, Ordering::Relaxed));
    });
    let part = Part { sequence, tokens, logits: Logits::Last };
    runner.step(model, &model.full(), &mut [part]).map(|logits| logits.to_vec())
}

fn open(path: &Path) -> (Model, Sequence) {
    let model = Model::open(path).unwrap();
    let sequence = Sequence::new(&Shape::new(model.config(), 1024, Store::F16));
    (model, sequence)
}

#[test]
fn a_step_that_meets_missing_pages_is_void() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::Q8_0);
    let whole = std::fs::read(&path).unwrap();
    let (model, mut sequence) = open(&path);
    let right = step(&model, &mut sequence, &[2, 5], |_| {}).unwrap();
    assert_eq!((right.len(), sequence.len()), (1536, 2));

    let (model, mut sequence) = open(&path);
    let file = Arc::new(File::options().write(true).open(&path).unwrap());
    let (len, time) = (whole.len() as u64, file.metadata().unwrap().modified().unwrap());
    let cut = Arc::clone(&file);
    let result = step(&model, &mut sequence, &[2, 5], move |layer| match layer {
        5 => cut.set_len(8192).unwrap(),
        // The file is as long and as old as before, so that the only trace is what the handler noted:
        // without layers 6 to 20 of it, kernels read zeros.
        20 => {
            cut.set_len(len).unwrap();
            cut.set_modified(time).unwrap();
        }
        _ => {}
    });
    assert!(matches!(result, Err(Error::FileChanged)), "{result:?}");
    assert_eq!(sequence.len(), 0, "the sequence is as it was");
    let is = file.metadata().unwrap();
    assert_eq!((is.len(), is.modified().unwrap()), (len, time), "the test hides the cut");
    // From then on nothing is computed, until the model is loaded again.
    assert!(matches!(step(&model, &mut sequence, &[2, 5], |_| {}), Err(Error::FileChanged)));
    std::fs::write(&path, &whole).unwrap();
    let (model, mut sequence) = open(&path);
    assert_eq!(step(&model, &mut sequence, &[2, 5], |_| {}).unwrap(), right);
}

#[test]
fn a_void_step_has_written_over_what_its_sequence_could_be_cut_back_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::Q8_0);
    let (model, mut sequence) = open(&path);
    for _ in 0..7 {
        step(&model, &mut sequence, &[5; 100], |_| {}).unwrap();
    }
    // The rings hold a window of 512 and 128 more.
    assert_eq!((sequence.len(), sequence.shortest()), (700, 700 - 128));
    let file = File::options().write(true).open(&path).unwrap();
    let result = step(&model, &mut sequence, &[5; 100], move |layer| {
        if layer == 5 {
            file.set_len(8192).unwrap();
        }
    });
    assert!(matches!(result, Err(Error::FileChanged)), "{result:?}");
    assert_eq!((sequence.len(), sequence.shortest()), (700, 700 - 28));
    assert!(!sequence.truncate(650) && sequence.truncate(680));
}

/// Says what the child process does.
const CHILD: &str = "NESTD_TEST_SIGBUS";

#[test]
fn any_other_sigbus_ends_the_process() {
    if let Ok(how) = std::env::var(CHILD) {
        sigbus(&how);
        return;
    }
    for how in ["own mapping", "own mapping, watched too", "raised", "sent"] {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "fault::any_other_sigbus_ends_the_process", "--nocapture"]);
        let output = test.env(CHILD, how).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("here it comes"), "{how}: {said}");
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{how}: {}", output.status);
    }
}

/// In a process of its own, whose handler is there because a model is open.
fn sigbus(how: &str) {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a system call with a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.gguf");
    demo::write_gguf(&path, Kind::Q8_0);
    let model = Model::open(&path).unwrap();
    let other = folder.path().join("other");
    // The model's own file counts as another's where another mapping of it is read.
    let path = if how.ends_with("too") { &path } else { &other };
    std::fs::write(&other, vec![1; 65536]).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: it is read through the pointer only, after it was cut.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    file.set_len(4096).unwrap();
    // No folder is left when the process has ended.
    std::fs::remove_dir_all(folder.path()).unwrap();
    println!("here it comes");
    // SAFETY: what is asked for is the signal; the page is within the mapping.
    unsafe {
        match how {
            "raised" => drop(libc::raise(libc::SIGBUS)),
            "sent" => drop(libc::kill(libc::getpid(), libc::SIGBUS)),
            _ => drop(map.as_ptr().add(32768).read_volatile()),
        }
    }
    // A signal to the whole process may take a moment.
    std::thread::sleep(std::time::Duration::from_secs(10));
    drop(model);
}
