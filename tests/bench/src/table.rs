//! What was measured, and how it is shown.

use std::time::Duration;

/// One round of one contestant.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time of one delivery.
    pub cpu: Duration,
    /// KiB.
    pub peak: u64,
}

pub const HEAD: &str = "\
| case | postroom /s | dovecot /s | ratio | p50 ms | p99 ms | CPU µs | peak MiB |
|---|---|---|---|---|---|---|---|";

/// One line: medians of the rounds, postroom's before dovecot's; the ratio is that of the rounds side by side, with its
/// least and greatest.
pub fn line(case: &str, postroom: &[Round], dovecot: &[Round]) -> String {
    let both = |digits: usize, of: fn(&Round) -> f64| {
        let show = |rounds: &[Round]| match rounds {
            [] => "–".to_owned(),
            rounds => format!("{:.digits$}", median(rounds.iter().map(of))),
        };
        (show(postroom), show(dovecot))
    };
    let pair = |(postroom, dovecot): (String, String)| format!("{postroom} / {dovecot}");
    let rates = both(0, |round| round.per_second);
    let mut ratios: Vec<f64> = postroom
        .iter()
        .zip(dovecot)
        .map(|(postroom, dovecot)| postroom.per_second / dovecot.per_second)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = match (ratios.first(), ratios.last()) {
        (Some(least), Some(greatest)) => {
            let middle = median(ratios.iter().copied());
            format!("**×{middle:.1}** ({least:.1}–{greatest:.1})")
        }
        _ => "–".into(),
    };
    format!(
        "| {case} | {} | {} | {ratio} | {} | {} | {} | {} |",
        rates.0,
        rates.1,
        pair(both(2, |round| round.p50)),
        pair(both(2, |round| round.p99)),
        pair(both(0, |round| round.cpu.as_secs_f64() * 1e6)),
        pair(both(1, |round| round.peak as f64 / 1024.0)),
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    (values[low] + values[high]) / 2.0
}
