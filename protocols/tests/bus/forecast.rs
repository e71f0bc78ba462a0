//! What was forecast of a bus against what it then does: its load within 5 %, no poll missed where it fits, polls missed
//! where it is impossible.

use std::time::Duration;

use tributary_protocols::modbus::forecast::{Forecast, Verdict};
use tributary_protocols::modbus::plan::Request;
use tributary_protocols::modbus::register::Table;

use crate::plant::{Event, Plant, S, brought_all, devices, request};

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
        // A forecast counts the silence behind each answer, the status only while a question is out.
        let silence = plant.spec.quiet * u32::try_from(plant.asked.len()).unwrap();
        let share = (status.busy + silence).as_secs_f64() / 120.0;
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
