//! What holds for every device: the policy on readings that nobody thought of.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::time::Duration;

use nestd_policy::decide::{Cause, Decision, Inputs, Shed, decide};
use nestd_policy::file;
use nestd_policy::holds::{Hold, Holds};
use nestd_policy::ladder::{Ladder, Rung};
use nestd_policy::level::Level;
use nestd_policy::settings::{PROFILES, Settings};
use nestd_policy::snapshot::{Battery, Memory, PowerProfile, Pressure, Snapshot};
use proptest::prelude::*;

const NAMES: [&str; 5] = ["E4B", "E3.5B", "E3B", "E2.5B", "E2B"];

fn ladder() -> Ladder {
    let rungs = NAMES.iter().zip([4.0, 3.5, 3.0, 2.5, 2.0]).map(|(name, params)| Rung {
        name: (*name).into(),
        need_mib: (params * 800.0) as u64,
        cost_percent: params * 25.0,
    });
    Ladder {
        rungs: rungs.collect(),
        held_mib: 0,
        limit_mib: None,
        context_tokens: 4096,
        parallel_requests: 4,
    }
}

fn profile() -> impl Strategy<Value = Settings> {
    (0..PROFILES.len()).prop_map(|index| file::settings(PROFILES[index].0, "").unwrap())
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let option = proptest::option::of::<std::ops::RangeInclusive<f64>>;
    let profiles = [PowerProfile::PowerSaver, PowerProfile::Balanced, PowerProfile::Performance];
    (
        option(0.0..=100.0),
        proptest::option::of(any::<bool>()),
        proptest::option::of(0..8000_u64),
        option(0.0..=100.0),
        any::<bool>(),
        option(-20.0..=120.0),
        proptest::option::of(proptest::sample::select(profiles.to_vec())),
    )
        .prop_map(
            |(percent, on_ac, available, some, stalled, temperature_c, power_profile)| Snapshot {
                memory: available.map(|available_mib| Memory {
                    available_mib,
                    total_mib: 8000,
                    ..Memory::default()
                }),
                pressure: some.map(|some_avg10| Pressure {
                    some_avg10,
                    full_avg10: some_avg10 / 2.0,
                    stalled,
                }),
                on_ac,
                battery: percent.map(|percent| Battery { percent, ..Battery::default() }),
                temperature_c,
                power_profile,
                sleeping: false,
            },
        )
}

fn holds() -> impl Strategy<Value = Holds> {
    let name = || proptest::option::of(proptest::sample::select(NAMES.to_vec()));
    let hold = (name(), name(), any::<bool>()).prop_map(|(min, max, no_background)| Hold {
        id: 1,
        client: "test".into(),
        min_size: min.map(Into::into),
        max_size: max.map(Into::into),
        no_background,
        reason: "a test".into(),
    });
    (proptest::collection::vec(hold, 0..4), proptest::option::weighted(0.2, name()))
        .prop_map(|(holds, pin)| Holds { holds, pin: pin.flatten().map(Into::into) })
}

/// Decides on snapshots a second apart.
fn run(settings: &Settings, holds: &Holds, day: &[Snapshot]) -> Vec<Decision> {
    let ladder = ladder();
    let mut decisions: Vec<Decision> = Vec::new();
    for (second, snapshot) in day.iter().enumerate() {
        let inputs = Inputs { snapshot, holds, ladder: &ladder, idle: None };
        let now = Duration::from_secs(second as u64);
        decisions.push(decide(settings, &inputs, decisions.last(), now));
    }
    decisions
}

fn place(decision: &Decision) -> usize {
    ladder().index(&decision.size).expect("a size of the ladder")
}

/// Readings that only waver: a value and its noise.
fn wavering(center: f64, noise: Vec<f64>, set: impl Fn(&mut Snapshot, f64)) -> Vec<Snapshot> {
    let calm = Snapshot { on_ac: Some(false), ..Snapshot::default() };
    let day = noise.into_iter().map(|noise| {
        let mut snapshot = calm.clone();
        set(&mut snapshot, center + noise);
        snapshot
    });
    day.collect()
}

fn at_most_one_change_per_dwell(settings: &Settings, decisions: &[Decision]) {
    let changes: Vec<usize> = decisions
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0].size != pair[1].size)
        .map(|(second, _)| second)
        .collect();
    for pair in changes.windows(2) {
        assert!((pair[1] - pair[0]) as f64 >= settings.dwell_s, "changes at {changes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The size stays within the holds, but for memory and danger, and a pin is obeyed.
    #[test]
    fn never_outside_the_holds(
        settings in profile(),
        holds in holds(),
        day in proptest::collection::vec(snapshot(), 1..20),
    ) {
        for (decision, snapshot) in run(&settings, &holds, &day).iter().zip(&day) {
            let size = place(decision);
            let available = snapshot.memory.map(|memory| memory.available_mib);
            let fits = ladder().within_memory(available, settings.reserve_leave_mib);
            prop_assert!(decision.cause != Cause::Pin || holds.pin.as_ref() == Some(&decision.size));
            let danger = decision.level == Level::Critical || decision.shed >= Shed::Size;
            if danger || fits > 0 {
                continue;
            }
            if let Some(pin) = holds.pin(&ladder()) {
                prop_assert_eq!(size, pin);
                continue;
            }
            if let Some((max, _)) = holds.max(&ladder()) {
                prop_assert!(size >= max, "{} is larger than a hold's maximum", decision.size);
            }
            if let Some((min, _)) = holds.min(&ladder()) {
                let max = holds.max(&ladder()).map_or(0, |(max, _)| max);
                prop_assert!(size <= min.max(max), "{} is smaller than a hold's minimum", decision.size);
            }
            prop_assert!(holds.no_background().is_none() || !decision.background_allowed);
        }
    }

    /// More battery never gives a smaller size, and neither does more memory.
    #[test]
    fn monotone_in_battery_and_memory(
        settings in profile(),
        snapshot in snapshot(),
        more in 0.0..50.0_f64,
    ) {
        let first = |snapshot: &Snapshot| {
            place(&run(&settings, &Holds::default(), std::slice::from_ref(snapshot))[0])
        };
        let size = first(&snapshot);
        let mut better = snapshot.clone();
        if let Some(battery) = &mut better.battery {
            battery.percent = (battery.percent + more).min(100.0);
        }
        prop_assert!(first(&better) <= size);
        let mut better = snapshot;
        if let Some(memory) = &mut better.memory {
            memory.available_mib += (more * 40.0) as u64;
        }
        prop_assert!(first(&better) <= size);
    }

    /// Noise around a threshold, as wide as the gap between entering and leaving, or wider.
    #[test]
    fn no_flapping(
        settings in profile(),
        level in 0..3_usize,
        noise in proptest::collection::vec(-8.0..8.0_f64, 400),
    ) {
        let level = Level::ENTERED[level];
        let enter = settings.battery.band(level).unwrap().enter;
        // A battery that wavers over the whole band of critical is one that jumps: danger comes first.
        if level < Level::Critical {
            let set = |s: &mut Snapshot, value: f64| {
                s.battery = Some(Battery { percent: value.clamp(0.0, 100.0), ..Battery::default() });
            };
            let narrow = noise.iter().map(|noise| noise / 4.0).collect();
            let day = wavering(enter, narrow, set);
            at_most_one_change_per_dwell(&settings, &run(&settings, &Holds::default(), &day));
        }
        let enter = settings.temperature.band(level).unwrap().enter;
        let narrow = noise.iter().map(|noise| noise / 8.0).collect();
        let day = wavering(enter, narrow, |s, value| s.temperature_c = Some(value));
        at_most_one_change_per_dwell(&settings, &run(&settings, &Holds::default(), &day));
        let gap = settings.reserve_leave_mib - settings.reserve_mib;
        let edge = ladder().rungs[1].need_mib as f64 + settings.reserve_mib;
        let small = noise.iter().map(|noise| noise / 8.0 * gap / 2.0).collect();
        let day = wavering(edge, small, |s, value| {
            s.memory = Some(Memory { available_mib: value as u64, ..Memory::default() });
        });
        at_most_one_change_per_dwell(&settings, &run(&settings, &Holds::default(), &day));
    }

    /// Whatever came before, critical memory gives something up in the evaluation that sees it, and
    /// all of it in the end.
    #[test]
    fn critical_memory_sheds_at_once(
        settings in profile(),
        holds in holds(),
        day in proptest::collection::vec(snapshot(), 0..10),
        available in 0..60_u64,
    ) {
        let critical = Snapshot {
            memory: Some(Memory { available_mib: available, total_mib: 8000, ..Memory::default() }),
            ..Snapshot::default()
        };
        let calm = day.len();
        let mut day = day;
        day.extend(std::iter::repeat_n(critical, 8));
        let decisions = run(&settings, &holds, &day);
        let first = &decisions[calm];
        prop_assert_eq!(first.level, Level::Critical);
        prop_assert!(first.shed >= Shed::Size);
        prop_assert_eq!(place(first), ladder().smallest());
        prop_assert!(first.max_context < 4096);
        prop_assert!(decisions[calm..].is_sorted_by_key(|decision| decision.shed));
        let last = decisions.last().unwrap();
        prop_assert!(last.shed == Shed::Model && last.park && !last.background_allowed);
        prop_assert_eq!(last.max_parallel, 1);
    }

    /// Readings that are gone limit nothing.
    #[test]
    fn absent_sensors_limit_nothing(settings in profile()) {
        let nothing = Snapshot::default();
        let decision = &run(&settings, &Holds::default(), &[nothing])[0];
        let full = ladder().within_cost(settings.cost_percent[0]);
        prop_assert_eq!(place(decision), full);
        prop_assert_eq!(decision.cause, Cause::Plenty);
    }
}

#[test]
fn up_waits_for_the_dwell_and_down_does_not() {
    let settings = file::settings("headset", "[governor]\ndwell_s = 10").unwrap();
    let battery = |percent| Snapshot {
        on_ac: Some(false),
        battery: Some(Battery { percent, ..Battery::default() }),
        ..Snapshot::default()
    };
    let mut day = vec![battery(80.0), battery(24.0)];
    day.extend(std::iter::repeat_n(battery(90.0), 15));
    let decisions = run(&settings, &Holds::default(), &day);
    assert_eq!((decisions[0].size.as_str(), decisions[1].size.as_str()), ("E4B", "E2B"));
    assert_eq!(decisions[1].cause, Cause::Battery);
    assert!(decisions[1].reason.contains("24 %"), "{}", decisions[1].reason);
    assert!(
        decisions[0].next_threshold.contains("E3B with battery at or below 50 %"),
        "{}",
        decisions[0].next_threshold
    );
    assert!(
        decisions[1].next_threshold.contains("battery above 30 %"),
        "{}",
        decisions[1].next_threshold
    );
    let up = decisions.iter().skip(2).position(|decision| decision.size == "E4B").unwrap();
    assert_eq!(up, 10);
    assert!(
        decisions[5].next_threshold.starts_with("E4B after 7 s"),
        "{}",
        decisions[5].next_threshold
    );
}

#[test]
fn a_pin_is_no_reason_while_memory_calms_down() {
    let settings = file::settings("headset", "[governor]\ndwell_s = 10").unwrap();
    let memory = |available_mib| Snapshot {
        memory: Some(Memory { available_mib, total_mib: 8000, ..Memory::default() }),
        ..Snapshot::default()
    };
    let pinned = Holds { pin: Some("E4B".into()), ..Holds::default() };
    let mut day = vec![memory(7000), memory(10)];
    day.extend(std::iter::repeat_n(memory(7000), 12));
    let decisions = run(&settings, &pinned, &day);
    assert_eq!((decisions[0].size.as_str(), decisions[0].cause), ("E4B", Cause::Pin));
    assert_eq!((decisions[5].size.as_str(), decisions[5].cause), ("E2B", Cause::Pressure));
    assert!(decisions[5].reason.contains("10 s of calm"), "{}", decisions[5].reason);
    let last = decisions.last().unwrap();
    assert_eq!((last.size.as_str(), last.cause), ("E4B", Cause::Pin));
}

#[test]
fn the_configured_memory_limits_the_size() {
    let settings = file::settings("plugged", "").unwrap();
    let ladder = Ladder { limit_mib: Some(2500), ..ladder() };
    for memory in [None, Some(Memory { available_mib: 7900, ..Memory::default() })] {
        let snapshot = Snapshot { memory, ..Snapshot::default() };
        let holds = Holds { pin: Some("E4B".into()), ..Holds::default() };
        let inputs = Inputs { snapshot: &snapshot, holds: &holds, ladder: &ladder, idle: None };
        let decision = decide(&settings, &inputs, None, Duration::ZERO);
        assert_eq!((decision.size.as_str(), decision.cause), ("E3B", Cause::Memory));
        assert_eq!(decision.reason, "E3.5B needs 2800 MiB, and model.memory_mib allows 2500");
        assert!(!decision.next_threshold.contains("MiB available"), "{}", decision.next_threshold);
    }
}

#[test]
fn mains_make_an_empty_battery_no_matter() {
    let settings = file::settings("headset", "").unwrap();
    let mut snapshot = Snapshot {
        on_ac: Some(true),
        battery: Some(Battery { percent: 5.0, ..Battery::default() }),
        ..Snapshot::default()
    };
    assert_eq!(run(&settings, &Holds::default(), &[snapshot.clone()])[0].size, "E4B");
    snapshot.on_ac = Some(false);
    let decision = &run(&settings, &Holds::default(), &[snapshot.clone()])[0];
    assert_eq!((decision.size.as_str(), decision.background_allowed), ("E2B", false));
    // A person may want it all the same.
    let pinned = Holds { pin: Some("E3B".into()), ..Holds::default() };
    let decision = &run(&settings, &pinned, &[snapshot])[0];
    assert_eq!((decision.size.as_str(), decision.cause), ("E3B", Cause::Pin));
}
