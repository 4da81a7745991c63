//! The thread that computes a step with the help of the others.

use std::io;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::Settings;
use super::place::place;

type Step = Box<dyn FnOnce() + Send>;

pub(super) struct Lead {
    /// None once it shall end.
    steps: Option<Sender<Step>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Lead {
    pub(super) fn start(settings: Settings) -> io::Result<Self> {
        let (steps, todo) = channel::<Step>();
        let (tell, done) = channel();
        let thread = Builder::new().name("nestd-compute-0".into()).spawn(move || {
            place(&settings, 0);
            for step in todo {
                step();
                let _ = tell.send(());
            }
        })?;
        Ok(Self { steps: Some(steps), done, thread: Some(thread) })
    }

    /// Returns when the step is done.
    pub(super) fn run<'s>(&self, step: Box<dyn FnOnce() + Send + 's>) {
        // SAFETY: the lifetime is taken away. This function does not return before the step was used up:
        // then it is told so, or, if the step panicked, the thread that told has ended.
        let step = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + 's>, Step>(step) };
        let Some(steps) = &self.steps else { return step() };
        match steps.send(step) {
            Ok(()) => drop(self.done.recv()),
            // There is no thread any more.
            Err(SendError(step)) => step(),
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
