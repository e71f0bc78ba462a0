//! Whether each bus can carry what is asked of it: refused before deployment if it cannot, warned of if it hardly can.

use std::time::Duration;

use tributary_protocols::modbus::forecast::{Forecast, TIGHT, Verdict};

use super::{BusSource, Check};

/// Checks every bus. The place of a fault is the bus's own.
pub(super) fn check(buses: &[BusSource], check: &mut Check<'_, '_>) {
    for (index, bus) in buses.iter().enumerate() {
        let key = format!("bus[{index}].name");
        let forecast = &bus.forecast;
        match forecast.verdict() {
            Verdict::Fits => {}
            Verdict::Tight => check.warning(&key, format!("{} is tight: {}", named(bus), load(forecast)), help(bus)),
            Verdict::Impossible => {
                let message = match forecast.misses.first() {
                    Some(miss) if forecast.utilisation <= 1.0 => format!(
                        "{} cannot keep a period of {}: what is due in it, and the longest other question, take {}",
                        named(bus),
                        ms(miss.period),
                        ms(miss.needs)
                    ),
                    _ => format!("{} cannot carry its requests: {}", named(bus), load(forecast)),
                };
                check.error(&key, message, help(bus));
            }
        }
    }
}

fn named(bus: &BusSource) -> String {
    format!("bus {:?}", bus.spec.name)
}

fn load(forecast: &Forecast) -> String {
    let assumed = if forecast.requests.iter().all(|ask| ask.stated) { "" } else { ", answer times assumed" };
    format!(
        "a round of {} takes {}, {:.0} % of its time{assumed}",
        match forecast.requests.len() {
            1 => "1 request".to_owned(),
            count => format!("{count} requests"),
        },
        ms(forecast.cycle),
        forecast.utilisation * 100.0
    )
}

/// What would make it fit, in numbers.
fn help(bus: &BusSource) -> String {
    let remedy = bus.forecast.remedy(&bus.spec, &bus.devices);
    let shortest = bus.forecast.requests.iter().map(|ask| ask.period).min().unwrap_or_default();
    let mut ways = Vec::new();
    if remedy.stretch > 1.0 {
        let longer = ms(shortest.mul_f64(remedy.stretch.min(1e6)));
        ways.push(format!(
            "periods {:.1} times as long ({} for those of {}) for a load of {:.0} %",
            (remedy.stretch * 10.0).ceil() / 10.0,
            longer,
            ms(shortest),
            TIGHT * 100.0
        ));
    }
    if let Some(baud) = remedy.baud {
        ways.push(format!("{baud} baud"));
    }
    if bus.forecast.requests.iter().any(|ask| !ask.stated) {
        ways.push("the real answer time, if it is less than assumed: limits.answer_time".to_owned());
    }
    if bus.devices.len() > 1 {
        ways.push("some of the devices on another bus".to_owned());
    }
    format!("{}; `check --plan` has the list", ways.join(", or "))
}

/// A duration for people: three digits or so.
pub(crate) fn ms(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        _ if millis >= 10_000.0 => format!("{:.1} s", millis / 1e3),
        _ if millis >= 100.0 => format!("{millis:.0} ms"),
        _ => format!("{millis:.1} ms"),
    }
}
