#![allow(clippy::unwrap_used)]

use std::sync::{Barrier, Mutex};

use nix::libc;

use super::*;

fn pool(threads: usize) -> Pool {
    Pool::new(&Settings { threads, ..Settings::default() }).unwrap()
}

#[test]
fn every_piece_is_done_once() {
    for threads in [1, 2, 4] {
        let mut pool = pool(threads);
        for round in 0..2000 {
            let pieces = round % 37;
            let done: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, &|piece| {
                done.get(piece).unwrap().fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            if round % 400 == 0 {
                // Long enough for the others to fall asleep.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

#[test]
fn a_panic_comes_through_and_the_pool_goes_on() {
    let mut pool = pool(3);
    for bad in 0..8 {
        let run = AssertUnwindSafe(|| {
            pool.run(8, &|piece| assert!(piece != bad, "piece {piece}"));
        });
        assert!(catch_unwind(run).is_err());
    }
    let count = AtomicUsize::new(0);
    pool.run(100, &|_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(count.into_inner(), 100);
}

#[test]
fn idle_threads_sleep() {
    let mut pool = pool(4);
    pool.run(4, &|_| {});
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(pool.shared.sleeping.load(Ordering::SeqCst), 3);
}

/// The cores that the calling thread may use, and its nice value.
fn placed() -> (Vec<usize>, i32) {
    // SAFETY: a zeroed set is an empty one, which the system fills; CPU_ISSET stays within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0);
        let cores = 0..libc::CPU_SETSIZE as usize;
        let cores = cores.filter(|core| libc::CPU_ISSET(*core, &set)).collect();
        (cores, libc::getpriority(libc::PRIO_PROCESS, 0))
    }
}

/// What `placed` says on each thread that computes, in order.
fn all_placed(pool: &mut Pool) -> Vec<(Vec<usize>, i32)> {
    let threads = pool.threads();
    let places = Mutex::new(Vec::new());
    // Nobody has two pieces, because nobody ends one before all have begun theirs.
    let together = Barrier::new(threads);
    pool.lead(|pool| {
        pool.run(threads, &|_| {
            together.wait();
            places.lock().unwrap().push(placed());
        });
    });
    let mut places = places.into_inner().unwrap();
    places.sort();
    places
}

#[test]
fn each_pool_s_threads_are_placed_as_its_settings_say_and_nobody_else_is() {
    let (usual, nice) = placed();
    let (first, last) = (*usual.first().unwrap(), *usual.last().unwrap());
    let nicer = |by: i32| (nice + by).min(19);
    // The first pool is still there while the others are made, as an engine is while a model is loaded.
    let settings = Settings { threads: 0, cores: vec![last], nice: 3 };
    let mut pinned = Pool::new(&settings).unwrap();
    for _ in 0..2 {
        assert_eq!(all_placed(&mut pinned), [(vec![last], nicer(3))]);
        // Nor is anything handed down to the threads that this one starts.
        assert_eq!(placed(), (usual.clone(), nice));
        assert_eq!(std::thread::spawn(placed).join().unwrap(), (usual.clone(), nice));
    }

    let settings = Settings { threads: 4, cores: vec![first, last], nice: 5 };
    let mut turns = Pool::new(&settings).unwrap();
    let mut expected = [first, last, first, last].map(|core| (vec![core], nicer(5)));
    expected.sort();
    assert_eq!(all_placed(&mut turns), expected);

    // One thread for each of the cores, but no more than there are; those that are not there are passed over.
    let settings = Settings { threads: 0, cores: (1000..4000).collect(), nice: 0 };
    let usable = std::thread::available_parallelism().unwrap().get();
    let mut everywhere = vec![(usual.clone(), nice); usable];
    assert_eq!(all_placed(&mut Pool::new(&settings).unwrap()), everywhere);

    assert_eq!(all_placed(&mut Pool::new(&Settings::default()).unwrap()), everywhere);
    everywhere.truncate(1);
    assert_eq!(all_placed(&mut pool(1)), everywhere);
    assert_eq!(all_placed(&mut pinned), [(vec![last], nicer(3))]);
    assert_eq!(placed(), (usual, nice));
}

#[test]
fn a_led_step_computes_on_the_pool_s_threads_and_its_panic_comes_through() {
    let mut pool = pool(2);
    let name = || std::thread::current().name().unwrap_or_default().to_owned();
    for _ in 0..100 {
        let (mut leader, sum) = (String::new(), AtomicUsize::new(0));
        pool.lead(|pool| {
            leader = name();
            // Once more, from within.
            pool.lead(|pool| {
                assert_eq!(name(), leader);
                pool.run(10, &|piece| {
                    assert!(name().starts_with("nestd-compute-"), "{}", name());
                    sum.fetch_add(piece, Ordering::Relaxed);
                });
            });
        });
        assert_eq!((leader.as_str(), sum.into_inner()), ("nestd-compute-0", 45));
        let panics = AssertUnwindSafe(|| pool.lead(|_| panic!("a step")));
        assert!(catch_unwind(panics).is_err());
    }
}
