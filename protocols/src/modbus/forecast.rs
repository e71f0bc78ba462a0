//! What a bus will have to carry, computed before anything is connected.
//!
//! Beside the schedule, which keeps these same times: a question and its answer take their characters on the wire, the
//! device takes its time between them, and the line is silent before the next question. From that follow the load of the
//! bus, the length of a round, and which periods can be kept. Pure arithmetic: no bus is simulated.
//!
//! - *utilisation* U = Σ tᵢ / pᵢ, tᵢ the time of request i, pᵢ its period. Above 1 polls are skipped whatever happens.
//! - *cycle* Σ tᵢ: one round in which everything is asked once.
//! - A period p is kept if what is due within p, and the longest other question that may be out when it becomes due, fit
//!   into it: Σ ⌊p / pᵢ⌋ tᵢ over all pᵢ ≤ p, plus max tₖ over all pₖ > p (Jeffay, Stanat and Martel 1991, of earliest
//!   deadline first without preemption; looked at where p is a period of the bus).
//! - A *dead device* costs three time-outs of each of its requests' questions at first, then at most `probe_share`.
//!
//! How long a device takes to answer is stated by its limits (`answer_time`), else assumed, and said so. On a network the
//! wire costs nothing here: a frame takes microseconds. A converter's serial side is not known, and is part of the
//! assumption.

use alloc::vec::Vec;
use core::time::Duration;

use crate::modbus::bus::BusDevice;
use crate::modbus::config::{BusSpec, Framing, Link, SerialLine};
use crate::modbus::frame::data_length;
use crate::modbus::patience::PATIENCE;
use crate::modbus::plan::Request;

/// Above this load a bus is called tight: little is left for time-outs, retries and questions beside the schedule.
pub const TIGHT: f64 = 0.7;
/// Line speeds that devices usually offer.
const BAUDS: [u32; 7] = [2_400, 4_800, 9_600, 19_200, 38_400, 57_600, 115_200];

/// What is to be expected of a bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Its requests, in the order of the devices.
    pub requests: Vec<Ask>,
    /// Share of the time in which the bus is taken, all devices answering.
    pub utilisation: f64,
    /// One round of all requests.
    pub cycle: Duration,
    /// The same if each answer comes just before its time-out.
    pub slowest_cycle: Duration,
    /// A round in which the k + 1 costliest devices are dead and not yet known to be: at most three.
    pub with_dead: Vec<Duration>,
    /// Share of the bus that is taken once dead devices are known to be dead, all others answering.
    pub utilisation_with_dead: f64,
    /// Periods that cannot be kept, with the time they would need; shortest first.
    pub misses: Vec<Miss>,
    /// The same, while one device is dead and not yet known to be.
    pub misses_with_dead: Vec<Miss>,
}

/// A request and its costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its number in the gateway's list.
    pub id: u32,
    /// Bytes of the question, with header or CRC.
    pub question: u32,
    /// Bytes of the answer.
    pub answer: u32,
    /// From one question to when the next may be asked.
    pub time: Duration,
    /// The same if the answer comes just before its time-out.
    pub slowest: Duration,
    /// Time between two polls.
    pub period: Duration,
    /// How long the device is taken to think.
    pub thinks: Duration,
    /// Whether that was stated.
    pub stated: bool,
}

/// A period that cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The period.
    pub period: Duration,
    /// What is due within it, and the longest other question.
    pub needs: Duration,
}

/// What a map is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything fits.
    Fits,
    /// It fits, but not if something goes wrong.
    Tight,
    /// Polls will be skipped.
    Impossible,
}

/// What would make a map fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remedy {
    /// By how much all periods would have to be multiplied for a load of [`TIGHT`].
    pub stretch: f64,
    /// The lowest usual line speed at which the load is [`TIGHT`] at the most.
    pub baud: Option<u32>,
}

/// How long a device is taken to think where nothing is stated: from its question's last byte to its answer's first.
#[must_use]
pub const fn assumed(link: &Link) -> Duration {
    match link {
        Link::Serial(_) => Duration::from_millis(10),
        // The converter's own line, at some 19,200 baud, is in it.
        Link::RtuOverTcp { .. } => Duration::from_millis(30),
        Link::Tcp { .. } | Link::Tls { .. } => Duration::from_millis(5),
    }
}

/// Bytes of a question and of the answer to it.
#[must_use]
pub fn sizes(request: &Request, framing: Framing) -> (u32, u32) {
    let data = u32::try_from(data_length(request)).unwrap_or(u32::MAX);
    match framing {
        Framing::Tcp => (12, 9 + data),
        Framing::Rtu => (8, 5 + data),
    }
}

impl Forecast {
    /// Of a bus and its devices.
    #[must_use]
    pub fn new(spec: &BusSpec, devices: &[BusDevice]) -> Self {
        let mut requests = Vec::new();
        // For each device: what it costs more when it is dead, over a round.
        let mut deaths: Vec<Duration> = Vec::new();
        for device in devices {
            let asks = device.requests.iter().map(|(id, request)| ask(spec, device, *id, request));
            let before = requests.len();
            requests.extend(asks);
            let mine = requests.get(before..).unwrap_or_default();
            let timeout = device.timing.timeout.unwrap_or(spec.timeout);
            // Its first PATIENCE questions wait for their time-outs, then it is silent.
            let waits = PATIENCE.min(u32::try_from(mine.len()).unwrap_or(PATIENCE));
            let longest = mine.iter().map(|ask| ask.time).min().unwrap_or_default();
            deaths.push(timeout.saturating_sub(longest) * waits);
        }
        crate::sort(&mut deaths, |a, b| b.cmp(a));
        let load = |asks: &[Ask]| asks.iter().map(|ask| ask.time.as_secs_f64() / ask.period.as_secs_f64()).sum::<f64>();
        let utilisation = load(&requests);
        let cycle = requests.iter().map(|ask| ask.time).sum();
        let mut with_dead = Vec::new();
        for death in deaths.iter().take(3) {
            with_dead.push(with_dead.last().copied().unwrap_or(cycle) + *death);
        }
        let misses = misses(&requests, Duration::ZERO);
        let one_dead = deaths.first().copied().unwrap_or_default();
        Self {
            utilisation,
            cycle,
            slowest_cycle: requests.iter().map(|ask| ask.slowest).sum(),
            with_dead,
            utilisation_with_dead: if devices.len() > 1 { utilisation + spec.probe_share } else { utilisation },
            misses_with_dead: self::misses(&requests, one_dead),
            misses,
            requests,
        }
    }

    /// What it is worth.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.utilisation > 1.0 || !self.misses.is_empty() {
            Verdict::Impossible
        } else if self.utilisation > TIGHT || self.utilisation_with_dead > 1.0 {
            Verdict::Tight
        } else {
            Verdict::Fits
        }
    }

    /// What would make it fit; `spec` and `devices` as given to [`new`](Self::new).
    #[must_use]
    pub fn remedy(&self, spec: &BusSpec, devices: &[BusDevice]) -> Remedy {
        let blocked = self.misses.iter().map(|miss| miss.needs.as_secs_f64() / miss.period.as_secs_f64());
        let stretch = blocked.fold(self.utilisation / TIGHT, f64::max);
        let baud = match &spec.link {
            Link::Serial(line) => BAUDS.into_iter().filter(|baud| *baud > line.baud).find(|baud| {
                let faster = SerialLine { baud: *baud, ..line.clone() };
                // The silence that the standard asks for shrinks with the characters, one that was asked for stays.
                let quiet = if spec.quiet > line.silence() { spec.quiet } else { faster.silence() };
                let spec = BusSpec { link: Link::Serial(faster), quiet, ..spec.clone() };
                let then = Self::new(&spec, devices);
                then.utilisation <= TIGHT && then.misses.is_empty()
            }),
            _ => None,
        };
        Remedy { stretch, baud }
    }
}

fn ask(spec: &BusSpec, device: &BusDevice, id: u32, request: &Request) -> Ask {
    let (question, answer) = sizes(request, spec.link.framing());
    let stated = device.timing.answer_time;
    let thinks = stated.unwrap_or_else(|| assumed(&spec.link));
    let (wire, least) = match &spec.link {
        Link::Serial(line) => (line.time(question + answer), line.silence()),
        _ => (Duration::ZERO, Duration::ZERO),
    };
    let quiet = device.timing.quiet.map_or(spec.quiet, |quiet| quiet.max(least));
    let timeout = device.timing.timeout.unwrap_or(spec.timeout);
    Ask {
        id,
        question,
        answer,
        time: wire + thinks + quiet,
        slowest: wire + timeout.max(thinks) + quiet,
        period: Duration::from_millis(request.period_ms.max(1).into()),
        thinks,
        stated: stated.is_some(),
    }
}

/// Periods that cannot be kept, if something beside the schedule takes `extra` of each.
fn misses(asks: &[Ask], extra: Duration) -> Vec<Miss> {
    let mut periods: Vec<Duration> = asks.iter().map(|ask| ask.period).collect();
    crate::sort(&mut periods, Ord::cmp);
    periods.dedup();
    let mut misses = Vec::new();
    for period in periods {
        let times = |ask: &Ask| u32::try_from(period.as_millis() / ask.period.as_millis().max(1)).unwrap_or(u32::MAX);
        let due: Duration = asks.iter().map(|ask| ask.time.saturating_mul(times(ask))).sum();
        let other = asks.iter().filter(|ask| ask.period > period).map(|ask| ask.time).max().unwrap_or_default();
        let needs = due + other + extra;
        if needs > period {
            misses.push(Miss { period, needs });
        }
    }
    misses
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use super::*;
    use crate::modbus::config::{DeviceSpec, resolve, resolve_bus};
    use crate::modbus::plan::plan;

    const MS: Duration = Duration::from_millis(1);

    fn bus(keys: &str) -> BusSpec {
        resolve_bus(&toml::from_str(&format!("name='b'\n{keys}")).expect(keys), "bus[0]").expect(keys)
    }

    /// A device with `registers` u16 from 0 on, each `period`.
    fn device(unit: u8, registers: u16, period: &str, keys: &str) -> BusDevice {
        let mut text = format!("name='u{unit}'\nbus='b'\nunit_id={unit}\naddressing='zero'\nperiod='{period}'\n{keys}");
        for register in 0..registers {
            text += &format!("\n[[point]]\nname='p{register}'\ntable='holding'\naddress={register}\ntype='u16'");
        }
        let spec: DeviceSpec = resolve(&toml::from_str(&text).expect("keys"), "d", None).expect("good");
        BusDevice::new(&spec, plan(&spec.points, spec.caps), u32::from(unit) * 10)
    }

    #[test]
    fn a_poll_takes_its_characters_its_answer_and_its_silence() {
        let spec = bus("serial='/dev/x'\nbaud=9600\nparity='none'");
        let forecast = Forecast::new(&spec, &[device(1, 10, "1s", "limits={answer_time='20ms'}")]);
        // 8 + 25 characters of 10 bits, 20 ms, 3.5 characters.
        let time = Duration::from_nanos(33 * 10_000_000_000 / 9_600) + 20 * MS + Duration::from_nanos(3_645_833);
        let [ask] = forecast.requests[..] else { panic!("one request") };
        assert_eq!((ask.question, ask.answer, ask.time, ask.stated), (8, 25, time, true));
        assert_eq!(forecast.cycle, time);
        assert!((forecast.utilisation - time.as_secs_f64()).abs() < 1e-9);
        assert_eq!(ask.slowest, time + 980 * MS, "a time-out in place of the answer's 20 ms");
        let spec = bus("tcp='h:502'\nquiet='3ms'");
        let forecast = Forecast::new(&spec, &[device(1, 10, "1s", "")]);
        let [ask] = forecast.requests[..] else { panic!("one request") };
        assert_eq!((ask.question, ask.answer, ask.time, ask.stated), (12, 29, 8 * MS, false));
    }

    #[test]
    fn a_map_is_refused_by_its_load_or_by_a_question_that_blocks() {
        let spec = bus("serial='/dev/x'\nbaud=9600\nparity='none'");
        let full: Vec<_> = (1..=20).map(|unit| device(unit, 100, "1s", "")).collect();
        let forecast = Forecast::new(&spec, &full);
        assert!(forecast.utilisation > 4.0 && forecast.verdict() == Verdict::Impossible, "{}", forecast.utilisation);
        let remedy = forecast.remedy(&spec, &full);
        assert!((remedy.stretch - forecast.utilisation / TIGHT).abs() < 0.2, "{remedy:?}");
        // At 115,200 baud the wire takes a twelfth, the devices still think.
        assert_eq!(remedy.baud, Some(115_200));
        // 125 registers take 268 ms at 9,600 baud: a poll each 100 ms cannot be kept beside them, however light the load.
        let blocked = vec![device(1, 1, "100ms", ""), device(2, 125, "60s", "")];
        let forecast = Forecast::new(&spec, &blocked);
        assert!(forecast.utilisation < 0.5, "{}", forecast.utilisation);
        assert_eq!(forecast.verdict(), Verdict::Impossible);
        let [miss] = forecast.misses[..] else { panic!("one miss") };
        assert!(miss.period == 100 * MS && miss.needs > 250 * MS, "{miss:?}");
        let light = vec![device(1, 1, "500ms", ""), device(2, 125, "60s", "")];
        assert_eq!(Forecast::new(&spec, &light).verdict(), Verdict::Fits);
    }

    #[test]
    fn dead_devices_cost_their_time_outs_and_then_a_share() {
        let spec = bus("serial='/dev/x'\ntimeout='500ms'");
        let forecast = Forecast::new(&spec, &[device(1, 10, "10s", ""), device(2, 10, "10s", "limits={timeout='1s'}")]);
        let once = forecast.requests[0].time;
        assert_eq!(forecast.with_dead, [forecast.cycle + 1_000 * MS - once, forecast.cycle + 1_500 * MS - 2 * once]);
        assert!((forecast.utilisation_with_dead - forecast.utilisation - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_bus_without_requests_costs_nothing() {
        let forecast = Forecast::new(&bus("tcp='h:502'"), &[]);
        assert_eq!((forecast.utilisation, forecast.verdict()), (0.0, Verdict::Fits));
    }
}
