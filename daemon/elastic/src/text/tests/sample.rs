use super::super::sample::{Draw, greedy, logprobs, uniform};

const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, f32::NEG_INFINITY, -1.0];

fn draw() -> Draw {
    Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 }
}

/// How often each token is drawn.
fn shares(draw: &Draw) -> [f64; 5] {
    let mut counts = [0.0; 5];
    for position in 0..20_000 {
        counts[draw.token(&LOGITS, position).unwrap()] += 1.0 / 20_000.0;
    }
    counts
}

/// The same draw, written without any haste.
fn plainly(draw: &Draw, logits: &[f32], position: usize) -> Option<usize> {
    let mut tokens: Vec<(usize, f64)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| logit.is_finite())
        .map(|(token, logit)| (token, f64::from(*logit)))
        .collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if draw.top_k > 0 {
        tokens.truncate(draw.top_k);
    }
    let highest = tokens.first()?.1;
    tokens.retain(|(_, logit)| logit - highest >= draw.min_p.max(1e-8).ln() * draw.temperature);
    let weight = |token: &(usize, f64)| ((token.1 - highest) / draw.temperature).exp();
    let all: f64 = tokens.iter().map(weight).sum();
    let mut kept = 0.0;
    let enough = |token: &(usize, f64)| {
        kept += weight(token);
        kept >= draw.top_p * all
    };
    let count = tokens.iter().position(enough).map_or(tokens.len(), |last| last + 1);
    tokens.truncate(count);
    let kept: f64 = tokens.iter().map(weight).sum();
    let mut left = uniform(draw.seed, position as u64) * kept;
    for token in &tokens {
        left -= weight(token);
        if left < 0.0 {
            return Some(token.0);
        }
    }
    tokens.last().map(|token| token.0)
}

fn random_logits(count: usize, mut state: u64) -> Vec<f32> {
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..count).map(|_| ((next() + next() + next() + next() - 2.0) * 20.0).round() / 2.0).collect()
}

#[test]
fn tokens_are_drawn_by_their_probability() {
    let weights = LOGITS.map(|logit| f64::from(logit).exp());
    let all: f64 = weights.iter().sum();
    for (share, weight) in shares(&draw()).iter().zip(weights) {
        assert!((share - weight / all).abs() < 0.01, "{share} for {}", weight / all);
    }
}

#[test]
fn each_limit_leaves_the_likeliest() {
    let drawn = |draw: Draw| shares(&draw).map(|share| share > 0.0);
    assert_eq!(drawn(Draw { top_k: 2, ..draw() }), [false, true, true, false, false]);
    assert_eq!(drawn(Draw { top_p: 0.5, ..draw() }), [false, true, false, false, false]);
    assert_eq!(drawn(Draw { top_p: 0.8, ..draw() }), [false, true, true, false, false]);
    assert_eq!(drawn(Draw { top_p: 0.0, ..draw() }), [false, true, false, false, false]);
    assert_eq!(drawn(Draw { min_p: 0.2, ..draw() }), [false, true, true, false, false]);
    assert_eq!(drawn(Draw { temperature: 0.05, ..draw() }), [false, true, false, false, false]);
    assert_eq!(drawn(Draw { temperature: 1e-300, ..draw() }), [false, true, false, false, false]);
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let answer = |seed| {
        let draw = Draw { temperature: 2.0, seed, ..draw() };
        (0..50).map(|position| draw.token(&LOGITS, position)).collect::<Vec<_>>()
    };
    assert_eq!(answer(7), answer(7));
    assert_ne!(answer(7), answer(8));
}

#[test]
fn the_quick_way_draws_what_the_plain_way_draws() {
    for (top_k, top_p, min_p, temperature) in [
        (0, 1.0, 0.0, 1.0),
        (0, 0.9, 0.0, 1.0),
        (64, 1.0, 0.0, 1.0),
        (64, 0.95, 0.01, 0.7),
        (1, 1.0, 0.0, 1.0),
        (2000, 0.999, 0.0, 3.0),
        (5000, 1.0, 0.0, 100.0),
        (0, 0.5, 0.1, 2.0),
    ] {
        let draw = Draw { temperature, top_k, top_p, min_p, seed: 3 };
        let mut differ = 0;
        for position in 0..60 {
            let mut logits = random_logits(3000 + position * 7, position as u64);
            logits[17] = f32::NAN;
            logits[18] = f32::INFINITY;
            logits[19] = f32::NEG_INFINITY;
            let drawn = draw.token(&logits, position);
            // Sums are made in another order, which at a border may tell.
            differ += usize::from(drawn != plainly(&draw, &logits, position));
        }
        assert!(differ < 2, "{draw:?}: {differ}");
    }
}

#[test]
fn the_likeliest_is_the_first_of_equals() {
    assert_eq!(greedy(&LOGITS), Some(1));
    assert_eq!(greedy(&[1.0, 3.0, f32::NAN, 3.0]), Some(1));
    assert_eq!(greedy(&[f32::INFINITY, f32::NEG_INFINITY, -5.0]), Some(2));
    for count in 1..100 {
        let mut logits = vec![-1.0; count];
        logits[count - 1] = 0.0;
        assert_eq!(greedy(&logits), Some(count - 1));
    }
}

#[test]
fn broken_logits_choose_nothing_and_break_nothing() {
    for logits in [&[][..], &[f32::NAN; 100], &[f32::INFINITY; 3], &[f32::NEG_INFINITY; 20]] {
        assert_eq!(greedy(logits), None);
        assert_eq!(draw().token(logits, 0), None);
        assert_eq!(logprobs(logits, 0, 5), None);
    }
    let extreme = [f32::MAX, f32::MIN, 0.0, f32::NAN];
    for temperature in [0.0, -1.0, 1e-300, 1e300, f64::NAN, f64::INFINITY] {
        for top_p in [f64::NAN, -1.0, 2.0] {
            let draw = Draw { temperature, top_k: 3, top_p, min_p: f64::NAN, seed: 0 };
            let _ = draw.token(&extreme, usize::MAX);
        }
    }
}

#[test]
fn logprobs_are_of_all_tokens() {
    let probs = logprobs(&LOGITS, 2, 2).unwrap();
    let all: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
    let of = |logit: f32| (logit.exp() / all).ln();
    assert!((probs.chosen - of(1.0)).abs() < 1e-6);
    assert_eq!(probs.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2]);
    assert!((probs.top[0].1 - of(2.0)).abs() < 1e-6);
    assert!(logprobs(&LOGITS, 3, 0).unwrap().chosen.is_infinite());
    assert_eq!(logprobs(&LOGITS, 99, 99).unwrap().top.len(), 4);
}

/// Run with `--release --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn how_long_it_takes() {
    let logits: Vec<f32> = random_logits(262_144, 1).iter().map(|logit| logit / 2.0).collect();
    let measure = |name: &str, run: &dyn Fn() -> usize| {
        let start = std::time::Instant::now();
        let sum: usize = (0..50).map(|_| run()).sum();
        println!("{name}: {:?} ({sum})", start.elapsed() / 50);
    };
    measure("greedy", &|| greedy(&logits).unwrap());
    let drawn = |draw: Draw| draw.token(&logits, 5).unwrap();
    measure("top-k 64", &|| drawn(Draw { top_k: 64, ..draw() }));
    measure("top-k 64, top-p 0.95", &|| drawn(Draw { top_k: 64, top_p: 0.95, ..draw() }));
    measure("top-p 0.95", &|| drawn(Draw { top_p: 0.95, ..draw() }));
    measure("all", &|| drawn(draw()));
    measure("logprobs", &|| logprobs(&logits, 5, 20).unwrap().top.len());
    let rising: Vec<f32> = (0..262_144).map(|i| i as f32 / 262_144.0).collect();
    measure("top-k 64, rising", &|| Draw { top_k: 64, ..draw() }.token(&rising, 1).unwrap());
}
