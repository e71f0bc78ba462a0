//! How fast a line goes, and what was forecast of it against what it then does: its load within 5 %, no poll missed where
//! it fits, polls missed where it is impossible.

use std::time::Duration;

use tributary_protocols::modbus::forecast::{Forecast, Verdict};
use tributary_protocols::modbus::plan::Request;
use tributary_protocols::modbus::register::Table;

use crate::plant::{Event, MS, Plant, Question, S, brought_all, devices, request};

/// A line's keys, its units, the milliseconds after which they answer, and what `check` should say.
type Case = (&'static str, Vec<(u8, Vec<Request>)>, u64, Verdict);

fn units(count: u8, registers: u16, period_ms: u32) -> Vec<(u8, Vec<Request>)> {
    (1..=count).map(|unit| (unit, vec![request(Table::Holding, 0, registers, period_ms)])).collect()
}

/// A fast request at unit 1, and a large slow one at unit 2.
fn fast_and_slow(fast_ms: u32) -> Vec<(u8, Vec<Request>)> {
    let fast = (1, vec![request(Table::Holding, 0, 4, fast_ms)]);
    let slow = (2, vec![request(Table::Holding, 0, 125, 10_000)]);
    vec![fast, slow]
}

#[test]
fn what_is_forecast_is_what_happens() {
    use Verdict::{Fits, Impossible, Tight};
    let cases: [Case; 11] = [
        ("baud = 9600", units(1, 10, 1_000), 20, Fits),
        ("baud = 9600", units(10, 10, 1_000), 20, Fits),
        ("baud = 9600", units(14, 10, 1_000), 20, Tight),
        ("baud = 9600", units(20, 10, 1_000), 20, Impossible),
        ("baud = 9600\nparity = 'none'\nquiet = '20ms'", units(8, 10, 1_000), 20, Fits),
        ("baud = 19200", units(6, 60, 1_000), 5, Fits),
        ("baud = 19200", units(12, 60, 1_000), 40, Impossible),
        ("baud = 115200", units(20, 60, 1_000), 10, Fits),
        ("baud = 115200", units(60, 60, 1_000), 10, Impossible),
        ("baud = 9600", fast_and_slow(600), 10, Fits),
        ("baud = 9600", fast_and_slow(120), 10, Impossible),
    ];
    for (keys, units, answer, verdict) in cases {
        let answer = Duration::from_millis(answer);
        let mut plant = Plant::new(&format!("serial = '/dev/x'\n{keys}"), &units, move |question| {
            vec![Event::Bytes(answer, question.pack(&question.good()))]
        });
        let (mut list, _) = devices(&units);
        list.iter_mut().for_each(|device| device.timing.answer_time = Some(answer));
        let forecast = Forecast::new(&plant.spec, &list);
        let case = format!("{keys:?}, {} units, {answer:?}", units.len());
        assert_eq!(forecast.verdict(), verdict, "{case}: {forecast:?}");

        plant.run(120 * S);
        plant.check();
        let status = plant.bus.status(plant.now);
        let missed = plant.traces.iter().filter(|trace| !brought_all(trace)).count();
        let share = status.busy.as_secs_f64() / 120.0;
        println!("{case}: {:.4} forecast, {share:.4} measured, {missed} missed", forecast.utilisation);
        match verdict {
            Impossible => assert!(missed > 0, "{case}: none was missed"),
            Fits | Tight => {
                assert_eq!(missed, 0, "{case}: polls were missed");
                let off = forecast.utilisation / share;
                assert!((0.95..=1.05).contains(&off), "{case}: {:.4} forecast, it is {share:.4}", forecast.utilisation);
            }
        }
    }
}

fn standard(unit: u8) -> (u8, Vec<Request>) {
    (unit, vec![request(Table::Holding, 0, 40, 1_000), request(Table::Input, 100, 20, 1_000)])
}

/// What the line needs for the questions that were asked: bytes, silence, and the slave's time.
fn limit(plant: &Plant, answer: Duration) -> Duration {
    let one = |question: &Question| {
        let bytes = question.frame.len() + question.pack(&question.good()).len();
        plant.character * u32::try_from(bytes).unwrap() + answer + plant.spec.quiet
    };
    plant.asked.iter().map(|(_, question)| one(question)).sum()
}

#[test]
fn a_full_line_is_used_to_its_physical_limit() {
    for (baud, answer) in [(9_600, 20), (19_200, 5), (19_200, 30), (115_200, 2)] {
        // 20 units, 40 requests: more than a second's worth.
        let units: Vec<_> = (1..=20).map(standard).collect();
        let answer = Duration::from_millis(answer);
        let mut plant = Plant::new(&format!("serial = '/dev/x'\nbaud = {baud}"), &units, move |question| {
            vec![Event::Bytes(answer, question.pack(&question.good()))]
        });
        plant.run(60 * S);
        plant.check();
        let limit = limit(&plant, answer);
        let status = plant.bus.status(plant.now);
        let took = 60.0 / limit.as_secs_f64();
        println!("{baud} baud, {answer:?}: {took:.4} of the limit; utilisation {}", status.utilisation);
        if baud < 100_000 {
            assert!((0.99..=1.05).contains(&took), "{took} of the physical limit");
            let cycle = limit / u32::try_from(plant.asked.len()).unwrap() * 40;
            let off = status.cycle.as_secs_f64() / cycle.as_secs_f64();
            assert!((0.97..=1.03).contains(&off), "it says {:?}, it is {cycle:?}", status.cycle);
            let (mut list, _) = devices(&(1..=20).map(standard).collect::<Vec<_>>());
            list.iter_mut().for_each(|device| device.timing.answer_time = Some(answer));
            let forecast = Forecast::new(&plant.spec, &list).cycle;
            let measured = 60 * S * 40 / u32::try_from(plant.asked.len()).unwrap();
            let off = forecast.as_secs_f64() / measured.as_secs_f64();
            assert!((0.95..=1.05).contains(&off), "{forecast:?} was forecast, it is {measured:?}");
        }
        assert!(status.devices.iter().all(|device| device.answer_mean.abs_diff(answer) < MS / 10), "{status:?}");
    }
}

#[test]
fn slow_points_cost_the_fast_ones_no_poll() {
    // Every ten seconds some 2.4 s of slow questions are due at once.
    let slow = (0..20).map(|n| request(Table::Input, 100 * n, 40, 10_000)).collect();
    let units = [(1, vec![request(Table::Holding, 0, 5, 500)]), (2, slow)];
    let mut plant = Plant::new("serial = '/dev/x'\nbaud = 9600", &units, |question| {
        vec![Event::Bytes(5 * MS, question.pack(&question.good()))]
    });
    plant.run(120 * S);
    assert!(plant.check().values().flatten().all(|trace| brought_all(trace)));
}
