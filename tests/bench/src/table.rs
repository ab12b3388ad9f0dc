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
    /// KiB; not known of programs that have ended.
    pub peak: Option<u64>,
}

pub const HEAD: &str = "\
| case | postroom /s | peer /s | ratio | p50 ms | p99 ms | CPU µs | peak MiB | floor /s |
|---|---|---|---|---|---|---|---|---|";

/// One line: medians of the rounds, postroom's before the peer's; the ratio is that of the rounds side by side, with its
/// least and greatest.
pub fn line(case: &str, postroom: &[Round], peer: &[Round], floor: &[Round]) -> String {
    let both = |digits: usize, of: fn(&Round) -> Option<f64>| {
        let show = |rounds: &[Round]| {
            median(rounds.iter().filter_map(of)).map_or("–".into(), |it| format!("{it:.digits$}"))
        };
        (show(postroom), show(peer))
    };
    let pair = |(postroom, peer): (String, String)| format!("{postroom} / {peer}");
    let rates = both(0, |round| Some(round.per_second));
    let mut ratios: Vec<f64> = postroom
        .iter()
        .zip(peer)
        .map(|(postroom, peer)| postroom.per_second / peer.per_second)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = match (median(ratios.iter().copied()), &ratios[..]) {
        (Some(middle), [least, ..]) => {
            let greatest = ratios.last().unwrap_or(least);
            format!("**×{middle:.1}** ({least:.1}–{greatest:.1})")
        }
        _ => "–".into(),
    };
    let floor = median(floor.iter().map(|round| round.per_second));
    let floor = floor.map_or("–".into(), |it| format!("{it:.0}"));
    format!(
        "| {case} | {} | {} | {ratio} | {} | {} | {} | {} | {floor} |",
        rates.0,
        rates.1,
        pair(both(2, |round| Some(round.p50))),
        pair(both(2, |round| Some(round.p99))),
        pair(both(0, |round| Some(round.cpu.as_secs_f64() * 1e6))),
        pair(both(1, |round| Some(round.peak? as f64 / 1024.0))),
    )
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some((values[last / 2] + values[values.len() / 2]) / 2.0)
}
