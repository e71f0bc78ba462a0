//! The registers of simulated units: a question's PDU → the answer's (Modbus Application Protocol V1.1b3, 6).
//!
//! Written for the slave's side; the master's checks are in `tributary-protocols`, and neither shares the other's code.

use std::collections::BTreeMap;

use tributary_protocols::modbus::config::{DeviceSpec, ModbusPoint};
use tributary_protocols::modbus::encode::encode;
use tributary_protocols::modbus::plan::PlannedPoint;
use tributary_protocols::modbus::register::Table;
use tributary_protocols::value::Value;

use super::motion::Motion;
use super::replay::Replay;

/// What registers between points are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Gaps {
    /// 0, as on most devices
    #[default]
    Zero,
    /// Refused with exception 2
    Refuse,
}

/// A simulated unit.
#[derive(Clone, Debug)]
pub struct Unit {
    spec: DeviceSpec,
    motions: Vec<Motion>,
    /// Each table's first and last address that is some point's.
    ranges: BTreeMap<Table, (u16, u16)>,
    covered: BTreeMap<Table, Vec<(u16, u16)>>,
    gaps: Gaps,
}

impl Unit {
    /// Of a configured device.
    #[must_use]
    pub fn new(spec: DeviceSpec, gaps: Gaps, seed: u64) -> Self {
        let is_scale = |name: &str| spec.points.iter().any(|point| point.point.scale_from.as_deref() == Some(name));
        let motions = spec.points.iter().map(|point| Motion::new(point, is_scale(&point.point.name), seed)).collect();
        let (mut ranges, mut covered) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
        for point in &spec.points {
            let last = point.address.saturating_add(point.ty.width() - 1);
            let range = ranges.entry(point.table).or_insert((point.address, last));
            *range = (range.0.min(point.address), range.1.max(last));
            covered.entry(point.table).or_default().push((point.address, last));
        }
        Self { spec, motions, ranges, covered, gaps }
    }

    /// What it was made of.
    #[must_use]
    pub fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// The value of a point `seconds` after the start.
    fn value(&self, index: usize, point: &ModbusPoint, seconds: f64, replay: Option<&Replay>) -> Option<Value> {
        let replayed = replay.and_then(|replay| replay.at(&self.spec.name, point, seconds));
        replayed.or_else(|| self.motions.get(index).map(|motion| motion.at(point, seconds)))
    }

    /// The answer to a PDU, `seconds` after the start.
    #[must_use]
    pub fn answer(&self, pdu: &[u8], seconds: f64, replay: Option<&Replay>) -> Vec<u8> {
        let Some((&function, rest)) = pdu.split_first() else { return Vec::new() };
        let table = match function {
            1 => Table::Coil,
            2 => Table::Discrete,
            3 => Table::Holding,
            4 => Table::Input,
            17 => return self.report_id(),
            43 => return self.identify(rest),
            _ => return exception(function, 1),
        };
        let &[a1, a0, c1, c0] = rest else { return exception(function, 3) };
        let (address, count) = (u16::from_be_bytes([a1, a0]), u16::from_be_bytes([c1, c0]));
        let most = if table.is_bits() { 2_000 } else { 125 };
        if !(1..=most).contains(&count) {
            return exception(function, 3);
        }
        let Some(last) = address.checked_add(count - 1).filter(|last| self.has(table, address, *last)) else {
            return exception(function, 2);
        };
        let mut words = vec![0_u16; usize::from(count)];
        for (index, point) in self.spec.points.iter().enumerate().filter(|(_, point)| point.table == table) {
            let end = point.address.saturating_add(point.ty.width() - 1);
            if end < address || point.address > last {
                continue;
            }
            let Some(value) = self.value(index, point, seconds, replay) else { continue };
            if table.is_bits() {
                if let Some(word) = words.get_mut(usize::from(point.address - address)) {
                    *word = u16::from(value == Value::Bits(1));
                }
                continue;
            }
            // A value that is asked for in part is made whole first, from what its neighbours have put there already.
            let mut own = vec![0_u16; usize::from(point.ty.width())];
            let place = |at: usize| (usize::from(point.address) + at).checked_sub(address.into());
            for (at, word) in own.iter_mut().enumerate() {
                *word = place(at).and_then(|at| words.get(at).copied()).unwrap_or(0);
            }
            let planned = PlannedPoint { index: 0, offset: 0, ty: point.ty, order: point.order, slice: point.slice };
            encode(&planned, &value, &mut own);
            for (at, word) in own.into_iter().enumerate() {
                if let Some(there) = place(at).and_then(|at| words.get_mut(at)) {
                    *there = word;
                }
            }
        }
        let data: Vec<u8> = match table.is_bits() {
            true => words
                .chunks(8)
                .map(|bits| (0..).zip(bits).fold(0, |byte, (at, bit)| byte | u8::from(*bit != 0) << at))
                .collect(),
            false => words.iter().flat_map(|word| word.to_be_bytes()).collect(),
        };
        let mut answer = vec![function, u8::try_from(data.len()).unwrap_or(u8::MAX)];
        answer.extend(data);
        answer
    }

    fn has(&self, table: Table, first: u16, last: u16) -> bool {
        let inside = self.ranges.get(&table).is_some_and(|(low, high)| *low <= first && last <= *high);
        let covered = || {
            let points = self.covered.get(&table).map(Vec::as_slice).unwrap_or_default();
            (first..=last).all(|at| points.iter().any(|(low, high)| (*low..=*high).contains(&at)))
        };
        inside && (self.gaps == Gaps::Zero || covered())
    }

    /// Function 17 (6.13): what the device calls itself, and that it runs.
    fn report_id(&self) -> Vec<u8> {
        let name = format!("{} {}", self.spec.vendor, self.spec.model);
        let mut data = vec![self.spec.unit];
        data.extend(name.trim().bytes().take(100));
        data.push(0xFF);
        let mut answer = vec![17, u8::try_from(data.len()).unwrap_or(u8::MAX)];
        answer.extend(data);
        answer
    }

    /// Function 43/14 (6.21): vendor, product code and revision, one after another.
    fn identify(&self, rest: &[u8]) -> Vec<u8> {
        let [14, code, object, ..] = *rest else { return exception(43, 1) };
        let objects = [self.spec.vendor.as_str(), self.spec.model.as_str(), env!("CARGO_PKG_VERSION")];
        let wanted: Vec<(u8, &str)> = match code {
            1 | 2 => (0..).zip(objects).filter(|(id, _)| *id >= object.min(2)).collect(),
            4 => (0..).zip(objects).filter(|(id, _)| *id == object).collect(),
            _ => return exception(43, 3),
        };
        if wanted.is_empty() {
            return exception(43, 2);
        }
        let mut answer = vec![43, 14, code, 0x81, 0, 0, u8::try_from(wanted.len()).unwrap_or(0)];
        for (id, text) in wanted {
            let text: Vec<u8> = text.bytes().take(60).collect();
            answer.extend([id, u8::try_from(text.len()).unwrap_or(0)]);
            answer.extend(text);
        }
        answer
    }
}

/// A refusal.
#[must_use]
pub fn exception(function: u8, code: u8) -> Vec<u8> {
    vec![function | 0x80, code]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tributary_protocols::modbus::config::resolve;
    use tributary_protocols::modbus::decode::decode;
    use tributary_protocols::modbus::frame::read;
    use tributary_protocols::modbus::plan::plan;
    use tributary_protocols::reading::Sample;

    use super::*;

    fn unit(gaps: Gaps) -> Unit {
        let text = "name='m'\nbus='b'\nunit_id=7\naddressing='zero'\nvendor='Acme'\nmodel='PM3'\n\
            [[point]]\nname='u'\ntable='holding'\naddress=10\ntype='f32'\norder='CDAB'\nunit='V'\n\
            [[point]]\nname='w'\ntable='holding'\naddress=12\ntype='i16'\nunit='W'\nscale=-10.0\nvalid=[-500.0,500.0]\n\
            [[point]]\nname='e'\ntable='holding'\naddress=20\ntype='u32'\ncounter=true\ncounter_modulus=1000\n\
            [[point]]\nname='run'\ntable='holding'\naddress=22\ntype='u16'\nbit=3\n\
            [[point]]\nname='mode'\ntable='holding'\naddress=22\ntype='u16'\nbits={shift=8,width=4}\nlabels={3='a',9='b'}\n\
            [[point]]\nname='a'\ntable='holding'\naddress=23\ntype='i16'\nunit='A'\nscale_from='a_sf'\n\
            [[point]]\nname='a_sf'\ntable='holding'\naddress=24\ntype='i16'\n\
            [[point]]\nname='label'\ntable='input'\naddress=0\ntype='string(6)'\n\
            [[point]]\nname='on'\ntable='coil'\naddress=3\ntype='bool'\n\
            [[point]]\nname='off'\ntable='coil'\naddress=9\ntype='bool'\n";
        Unit::new(resolve(&toml::from_str(text).unwrap(), "d", None).unwrap(), gaps, 5)
    }

    #[test]
    fn every_planned_request_brings_the_values_that_are_served() {
        let unit = unit(Gaps::Zero);
        for seconds in [0.0, 3.5, 59.0, 86_400.0] {
            for request in plan(&unit.spec.points, unit.spec.caps) {
                let answer =
                    unit.answer(&read(request.table.function(), request.address, request.count), seconds, None);
                assert_eq!(answer[0], request.table.function(), "{answer:02x?}");
                for (planned, sample) in request.points.iter().zip(decode(&request, &answer[2..])) {
                    let index = planned.index as usize;
                    let point = &unit.spec.points[index];
                    let served = unit.value(index, point, seconds, None).unwrap();
                    assert_eq!(sample, Sample { value: served.clone(), ..Sample::good(0) }, "{}", point.point.name);
                    if let (Some((low, high)), Value::Bits(bits)) = (point.point.valid, &served) {
                        let real = point.point.scale.real(point.point.ty, *bits).unwrap();
                        assert!((low..=high).contains(&real), "{real}");
                    }
                }
            }
        }
    }

    #[test]
    fn gaps_are_zero_or_refused_and_the_outside_is_refused() {
        let pdu = read(3, 13, 7);
        assert_eq!(unit(Gaps::Zero).answer(&pdu, 0.0, None)[..2], [3, 14]);
        assert_eq!(unit(Gaps::Refuse).answer(&pdu, 0.0, None), [0x83, 2]);
        for (function, address, count, code) in
            [(3, 9, 2, 2), (3, 24, 2, 2), (3, 10, 126, 3), (3, 10, 0, 3), (2, 0, 1, 2)]
        {
            let answer = unit(Gaps::Zero).answer(&read(function, address, count), 0.0, None);
            assert_eq!(answer, [function | 0x80, code], "{function} {address} {count}");
        }
        assert_eq!(unit(Gaps::Zero).answer(&[6, 0, 10, 0, 1], 0.0, None), [0x86, 1], "nothing here can be written");
    }

    #[test]
    fn it_says_who_it_is() {
        let unit = unit(Gaps::Zero);
        assert_eq!(unit.answer(&[17], 0.0, None), [&[17, 10, 7], b"Acme PM3".as_slice(), &[0xFF]].concat());
        let identity = unit.answer(&[43, 14, 1, 0], 0.0, None);
        assert_eq!(identity[..7], [43, 14, 1, 0x81, 0, 0, 3]);
        assert_eq!(identity[7..13], *b"\x00\x04Acme");
        assert_eq!(unit.answer(&[43, 14, 4, 9], 0.0, None), [0xAB, 2]);
    }

    proptest! {
        #[test]
        fn any_question_is_answered_within_bounds(pdu in proptest::collection::vec(any::<u8>(), 0..20), seconds in 0.0..1e9) {
            let answer = unit(Gaps::Zero).answer(&pdu, seconds, None);
            prop_assert!(answer.len() <= 253);
            prop_assert_eq!(answer.is_empty(), pdu.is_empty());
        }
    }
}
