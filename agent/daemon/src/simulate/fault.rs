//! What goes wrong on purpose: `--fault KIND[@UNIT][:PERCENT]`, drawn from a seed.

use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use tributary_protocols::modbus::config::Framing;

/// One way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing comes.
    Silent,
    /// The answer comes after 1.5 s.
    Late,
    /// The answer comes after 200 ms.
    Slow,
    /// That exception.
    Exception(u8),
    /// Half the answer.
    Truncate,
    /// A byte is changed.
    Corrupt,
    /// Another unit's number.
    WrongUnit,
    /// Another transaction; on a serial line as `corrupt`.
    WrongTransaction,
    /// Bytes that are no answer, instead of one.
    Garbage,
    /// Some bytes before the answer.
    Noise,
    /// The question comes back before the answer.
    Echo,
    /// The answer twice.
    Double,
    /// One byte each 2 ms.
    ByteByByte,
    /// The connection is closed.
    Close,
}

const NAMES: [(&str, Kind); 13] = [
    ("silent", Kind::Silent),
    ("late", Kind::Late),
    ("slow", Kind::Slow),
    ("truncate", Kind::Truncate),
    ("corrupt", Kind::Corrupt),
    ("wrong-unit", Kind::WrongUnit),
    ("wrong-transaction", Kind::WrongTransaction),
    ("garbage", Kind::Garbage),
    ("noise", Kind::Noise),
    ("echo", Kind::Echo),
    ("double", Kind::Double),
    ("byte-by-byte", Kind::ByteByByte),
    ("close", Kind::Close),
];

/// A fault, of whom, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    unit: Option<u8>,
    percent: u8,
}

/// Why a text is no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no fault: KIND[@UNIT][:PERCENT], as in silent@7 or corrupt:5; kinds are silent late slow exception-N truncate corrupt wrong-unit wrong-transaction garbage noise echo double byte-by-byte close"
)]
pub struct FaultError(String);

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let wrong = || FaultError(text.to_owned());
        let (rest, percent) =
            text.split_once(':').map_or((text, Some(100)), |(rest, percent)| (rest, percent.parse().ok()));
        let (kind, unit) = match rest.split_once('@') {
            Some((kind, unit)) => (kind, Some(unit.parse().map_err(|_| wrong())?)),
            None => (rest, None),
        };
        let kind = match kind.strip_prefix("exception-") {
            Some(code) => Kind::Exception(code.parse().map_err(|_| wrong())?),
            None => NAMES.iter().find(|(name, _)| *name == kind).map(|(_, kind)| *kind).ok_or_else(wrong)?,
        };
        let percent = percent.filter(|percent| (1..=100).contains(percent)).ok_or_else(wrong)?;
        Ok(Self { kind, unit, percent })
    }
}

/// What is sent, and when after the question; then perhaps the end of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pieces, each so long after the one before.
    pub pieces: Vec<(Duration, Vec<u8>)>,
    /// Whether the connection is closed behind them.
    pub close: bool,
}

/// The first of `faults` that strikes `unit` now.
#[must_use]
pub fn draw(faults: &[Fault], unit: u8, rng: &mut Rng) -> Option<Kind> {
    let strikes = |fault: &&Fault| fault.unit.is_none_or(|only| only == unit) && rng.u8(..100) < fault.percent;
    faults.iter().find(strikes).map(|fault| fault.kind)
}

/// `answer` to `question`, both as frames, as `kind` spoils it. An exception was made before.
#[must_use]
pub fn spoil(kind: Option<Kind>, question: &[u8], answer: &[u8], framing: Framing, rng: &mut Rng) -> Sent {
    const NOW: Duration = Duration::ZERO;
    let whole = answer.to_vec();
    let mut noise = |most: usize| -> Vec<u8> { (0..rng.usize(1..=most)).map(|_| rng.u8(..)).collect() };
    let changed = |at: usize| {
        let mut frame = whole.clone();
        if let Some(byte) = frame.get_mut(at) {
            *byte ^= 0x55;
        }
        frame
    };
    let head = if framing == Framing::Tcp { 6 } else { 0 };
    let pieces = match kind {
        None | Some(Kind::Exception(_)) => vec![(NOW, whole)],
        Some(Kind::Silent) => Vec::new(),
        Some(Kind::Close) => return Sent { pieces: Vec::new(), close: true },
        Some(Kind::Late) => vec![(Duration::from_millis(1_500), whole)],
        Some(Kind::Slow) => vec![(Duration::from_millis(200), whole)],
        Some(Kind::Truncate) => vec![(NOW, whole[..whole.len() / 2].to_vec())],
        // Of a TCP frame the header: its data have no checksum, and a changed value could not be told.
        Some(Kind::Corrupt) if framing == Framing::Tcp => vec![(NOW, changed(head + 1))],
        Some(Kind::Corrupt) => vec![(NOW, changed(whole.len() / 2))],
        Some(Kind::WrongUnit) => vec![(NOW, changed(head))],
        Some(Kind::WrongTransaction) if framing == Framing::Tcp => vec![(NOW, changed(0))],
        Some(Kind::WrongTransaction) => vec![(NOW, changed(whole.len() - 1))],
        Some(Kind::Garbage) => vec![(NOW, noise(40))],
        Some(Kind::Noise) => vec![(NOW, [noise(6), whole].concat())],
        Some(Kind::Echo) => vec![(NOW, [question, answer].concat())],
        Some(Kind::Double) => vec![(NOW, whole.clone()), (Duration::from_millis(5), whole)],
        Some(Kind::ByteByByte) => whole.into_iter().map(|byte| (Duration::from_millis(2), vec![byte])).collect(),
    };
    Sent { pieces, close: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_typed() {
        assert_eq!("silent".parse(), Ok(Fault { kind: Kind::Silent, unit: None, percent: 100 }));
        assert_eq!("exception-6@9:25".parse(), Ok(Fault { kind: Kind::Exception(6), unit: Some(9), percent: 25 }));
        for text in ["", "silnt", "silent@300", "silent:0", "silent:101", "exception-x"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_fault_strikes_its_unit_as_often_as_it_says() {
        let faults = ["silent@7:25".parse().unwrap()];
        let mut rng = Rng::with_seed(3);
        let struck = (0..10_000).filter(|_| draw(&faults, 7, &mut rng).is_some()).count();
        assert!((2_300..2_700).contains(&struck), "{struck}");
        assert_eq!(draw(&faults, 8, &mut rng), None);
    }

    #[test]
    fn nothing_spoilt_is_the_answer() {
        let mut rng = Rng::with_seed(3);
        let (question, answer) = ([1, 3, 0, 0, 0, 1, 0x84, 0x0A], [1, 3, 2, 0, 7, 0xF9, 0x86]);
        for (name, kind) in NAMES {
            let sent = spoil(Some(kind), &question, &answer, Framing::Rtu, &mut rng);
            let bytes: Vec<u8> = sent.pieces.iter().flat_map(|(_, piece)| piece.clone()).collect();
            let honest = matches!(kind, Kind::Late | Kind::Slow | Kind::ByteByByte);
            assert_eq!(bytes == answer, honest, "{name}");
            assert_eq!(sent.close, kind == Kind::Close, "{name}");
        }
    }
}
