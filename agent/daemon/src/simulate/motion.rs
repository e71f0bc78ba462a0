//! Values that move as a plant's do: smoothly, inside what is valid, always the same for one seed and moment.
//!
//! Where nothing is stated a unit says what is usual: 230 V, 50 Hz, 21 °C. Counters grow and roll over, labels take turns,
//! bits flip now and then, a text is the point's name.

use tributary_protocols::modbus::config::ModbusPoint;
use tributary_protocols::modbus::register::RegisterType;
use tributary_protocols::value::{PointType, Value};

/// Which power of ten every scale register holds.
const EXPONENT: i64 = -1;

/// One point's movement.
#[derive(Clone, Debug)]
pub struct Motion {
    /// Its own number between 0 and 1, so that no two move alike.
    phase: f64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Around the middle of a range of real values.
    Wave {
        low: f64,
        high: f64,
    },
    /// By so many raw steps a second, up to the last before a modulus.
    Counter {
        rate: f64,
        modulus: f64,
    },
    /// Through these values.
    Turns(Vec<i64>),
    /// Off and on.
    Flips,
    /// Always the same.
    Fixed(i64),
    Text(String),
}

impl Motion {
    /// Of a point; `is_scale` if others take their scale from it.
    #[must_use]
    pub fn new(point: &ModbusPoint, is_scale: bool, seed: u64) -> Self {
        // FNV-1a: the same name moves alike on every machine.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        let mixed = point.point.name.bytes().chain(point.point.source.bytes()).fold(seed ^ 0xCBF2_9CE4_8422_2325, hash);
        let phase = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
        Self { phase, kind: kind(point, is_scale) }
    }

    /// The value `seconds` after the start.
    #[must_use]
    pub fn at(&self, point: &ModbusPoint, seconds: f64) -> Value {
        match &self.kind {
            Kind::Wave { low, high } => {
                // Two waves of 60 and 7 seconds: it wanders and trembles.
                let turn = |period: f64| ((seconds / period + self.phase) * std::f64::consts::TAU).sin();
                let swing = 0.8 * turn(60.0) + 0.2 * turn(7.0);
                raw(point, low + (high - low) * (0.5 + 0.45 * swing))
            }
            Kind::Counter { rate, modulus } => {
                let count = (self.phase * modulus.min(1e6) + rate * seconds).rem_euclid(*modulus);
                match point.point.ty {
                    PointType::Float32 | PointType::Float64 => raw_float(point.point.ty, count),
                    _ => Value::Bits(count as u64),
                }
            }
            Kind::Turns(values) => {
                let turn = (seconds / 10.0 + self.phase * values.len() as f64) as usize;
                Value::Bits(values.get(turn % values.len().max(1)).copied().unwrap_or(0).cast_unsigned())
            }
            Kind::Flips => Value::Bits(u64::from((seconds / (7.0 + 20.0 * self.phase)) as u64 % 2 == 1)),
            Kind::Fixed(value) => Value::Bits(value.cast_unsigned()),
            Kind::Text(text) => Value::Text(text.as_str().into()),
        }
    }
}

fn kind(point: &ModbusPoint, is_scale: bool) -> Kind {
    let meaning = &point.point;
    let bits = point.slice.map_or(point.ty.bits(), |slice| slice.width.into());
    match meaning.ty {
        PointType::String => Kind::Text(match point.ty {
            RegisterType::Bytes(_) => "c0ffee".into(),
            _ => meaning.name.clone(),
        }),
        PointType::Bool => Kind::Flips,
        _ if is_scale => Kind::Fixed(EXPONENT),
        _ if !meaning.labels.is_empty() => Kind::Turns(meaning.labels.keys().copied().collect()),
        _ if meaning.counter => {
            let factor = step(point);
            let full = if point.ty.is_bcd() { 10_f64.powi(bits as i32 / 4) } else { 2_f64.powi(bits.min(53) as i32) };
            let modulus = if meaning.counter_modulus == 0 { full } else { meaning.counter_modulus as f64 };
            Kind::Counter { rate: meaning.max_rate.map_or(1.0, |rate| (rate / 4.0 / factor).abs()), modulus }
        }
        _ if !meaning.extra.is_empty() => Kind::Fixed(0),
        _ => {
            let (low, high) = meaning.valid.unwrap_or_else(|| usual(&meaning.unit));
            let holds = |real: f64| within(point, bits, real);
            match holds(low) && holds(high) {
                true => Kind::Wave { low, high },
                // What is usual does not fit into the type: some raw steps do.
                false => {
                    let real = |raw: f64| raw * step(point) + meaning.scale.bias;
                    Kind::Wave { low: real(0.0), high: real(2_f64.powi(bits.min(7) as i32 - 1) - 1.0) }
                }
            }
        }
    }
}

/// What such a quantity usually is.
fn usual(unit: &str) -> (f64, f64) {
    match unit {
        "V" => (225.0, 235.0),
        "Hz" => (49.9, 50.1),
        "A" => (1.0, 9.0),
        "W" | "V.A" | "VA" => (200.0, 2_000.0),
        "kW" => (0.2, 2.0),
        "var" => (-100.0, 100.0),
        "Cel" => (18.0, 24.0),
        "%" => (40.0, 60.0),
        "bar" => (1.0, 6.0),
        _ => (0.0, 100.0),
    }
}

/// One raw step as a real value, a scale register included.
fn step(point: &ModbusPoint) -> f64 {
    let scale = point.point.scale;
    let factor = if scale.factor == 0.0 { 1.0 } else { scale.factor };
    let from = if point.point.scale_from.is_some() { 10_f64.powi(EXPONENT as i32) } else { 1.0 };
    factor * 10_f64.powi(scale.exponent) * from
}

/// The raw value nearest to a real one.
#[must_use]
pub fn raw(point: &ModbusPoint, real: f64) -> Value {
    let raw = (real - point.point.scale.bias) / step(point);
    match point.point.ty {
        PointType::Float32 | PointType::Float64 => raw_float(point.point.ty, raw),
        PointType::Uint64 => Value::Bits(raw.round() as u64),
        PointType::Bool => Value::Bits(u64::from(raw != 0.0)),
        _ => Value::Bits((raw.round() as i64).cast_unsigned()),
    }
}

fn raw_float(ty: PointType, value: f64) -> Value {
    match ty {
        PointType::Float32 => Value::Bits(u64::from((value as f32).to_bits())),
        _ => Value::Bits(value.to_bits()),
    }
}

/// Whether a real value has a raw one in so many bits.
fn within(point: &ModbusPoint, bits: u32, real: f64) -> bool {
    let raw = (real - point.point.scale.bias) / step(point);
    match point.ty {
        RegisterType::F16 => raw.abs() <= 65_504.0,
        RegisterType::F32 | RegisterType::F64 => true,
        ty if ty.is_bcd() => (0.0..10_f64.powi(bits as i32 / 4)).contains(&raw),
        ty if ty.is_signed() => raw.abs() < 2_f64.powi(bits as i32 - 1),
        _ => (0.0..2_f64.powi(bits as i32)).contains(&raw),
    }
}
