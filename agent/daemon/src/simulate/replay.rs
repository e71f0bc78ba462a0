//! Values from a file instead of made-up ones: CSV with the columns `time`, `point`, `value`.
//!
//! `time` is in seconds from the beginning, `point` is `DEVICE/POINT`, `value` the real value or a text. A value stands
//! until the next of its point. After the last line it begins anew.

use std::collections::BTreeMap;

use tributary_protocols::modbus::config::ModbusPoint;
use tributary_protocols::sort;
use tributary_protocols::value::{PointType, Value};

use super::motion::raw;

/// A file of values.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    points: BTreeMap<String, Vec<(f64, String)>>,
    length: f64,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ReplayError {
    line: u64,
    message: String,
}

impl Replay {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &str) -> Result<Self, ReplayError> {
        let mut replay = Self::default();
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::All).comment(Some(b'#')).from_reader(text.as_bytes());
        let fault = |line: u64, message: String| ReplayError { line, message };
        let headers = reader.headers().map_err(|error| fault(1, error.to_string()))?.clone();
        let column = |name: &str| {
            let at = headers.iter().position(|header| header == name);
            at.ok_or_else(|| fault(1, format!("there is no column {name:?}; the first line is time,point,value")))
        };
        let (time, point, value) = (column("time")?, column("point")?, column("value")?);
        for record in reader.records() {
            let record =
                record.map_err(|error| fault(error.position().map_or(0, csv::Position::line), error.to_string()))?;
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |at: usize| record.get(at).unwrap_or_default();
            let seconds = cell(time).parse::<f64>().ok().filter(|time| time.is_finite() && *time >= 0.0);
            let seconds = seconds.ok_or_else(|| {
                fault(line, format!("{:?} is no time: seconds from the beginning, as 1.5", cell(time)))
            })?;
            replay.points.entry(cell(point).to_owned()).or_default().push((seconds, cell(value).to_owned()));
            replay.length = replay.length.max(seconds);
        }
        for values in replay.points.values_mut() {
            sort(values, |a, b| a.0.total_cmp(&b.0));
        }
        Ok(replay)
    }

    /// Names that stand in the file: `DEVICE/POINT`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.points.keys().map(String::as_str)
    }

    /// The value of a device's point `seconds` after the start, if the file has one.
    #[must_use]
    pub fn at(&self, device: &str, point: &ModbusPoint, seconds: f64) -> Option<Value> {
        let values = self.points.get(&format!("{device}/{}", point.point.name))?;
        let seconds = if self.length > 0.0 { seconds % self.length } else { 0.0 };
        let text = &values.iter().rev().find(|(time, _)| *time <= seconds).or(values.last())?.1;
        match point.point.ty {
            PointType::String => Some(Value::Text(text.as_str().into())),
            PointType::Bool => Some(Value::Bits(u64::from(matches!(text.as_str(), "1" | "true" | "on")))),
            _ => text.parse().ok().map(|real| raw(point, real)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocols::modbus::config::resolve;

    use super::*;

    #[test]
    fn values_stand_until_the_next_and_begin_anew() {
        let text = "name='m'\nbus='b'\nunit_id=7\naddressing='zero'\n\
            [[point]]\nname='u'\ntable='holding'\naddress=10\ntype='u16'\nscale=0.1\n";
        let device = resolve(&toml::from_str(text).unwrap(), "d", None).unwrap();
        let replay = Replay::parse("time,point,value\n0,m/u,230.5\n# a note\n2, m/u, 231\n4,m/x,1\n").unwrap();
        let at = |seconds| replay.at("m", &device.points[0], seconds);
        assert_eq!((at(0.0), at(1.9)), (Some(Value::Bits(2_305)), Some(Value::Bits(2_305))));
        assert_eq!(
            (at(2.0), at(3.9), at(4.1)),
            (Some(Value::Bits(2_310)), Some(Value::Bits(2_310)), Some(Value::Bits(2_305)))
        );
        assert_eq!(replay.at("other", &device.points[0], 0.0), None);
        assert_eq!(replay.names().collect::<Vec<_>>(), ["m/u", "m/x"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = |text: &str| Replay::parse(text).unwrap_err().to_string();
        assert!(error("zeit,point,value\n").contains("no column \"time\""));
        assert_eq!(
            error("time,point,value\n0,a,1\nsoon,a,2\n"),
            "line 3: \"soon\" is no time: seconds from the beginning, as 1.5"
        );
        assert!(error("time,point,value\n0,a\n").starts_with("line 2: "));
    }
}
