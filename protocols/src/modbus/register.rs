//! The words of a Modbus device: tables, the types that registers hold, and the order of their bytes.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::value::PointType;

/// One of the four address spaces of a device (Modbus Application Protocol V1.1b3, 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Single bits, read and write: function 1.
    Coil,
    /// Single bits, read only: function 2.
    Discrete,
    /// 16-bit registers, read only: function 4.
    Input,
    /// 16-bit registers, read and write: function 3.
    Holding,
}

impl Table {
    /// The function code that reads it (V1.1b3, 6.1 to 6.4).
    #[must_use]
    pub const fn function(self) -> u8 {
        match self {
            Self::Coil => 1,
            Self::Discrete => 2,
            Self::Holding => 3,
            Self::Input => 4,
        }
    }

    /// Whether its cells are single bits.
    #[must_use]
    pub const fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }

    /// As configuration names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coil => "coil",
            Self::Discrete => "discrete",
            Self::Input => "input",
            Self::Holding => "holding",
        }
    }

    /// The table that a leading Modicon digit names; 0 coil, 1 discrete, 3 input, 4 holding.
    #[must_use]
    pub const fn from_modicon(digit: u32) -> Option<Self> {
        match digit {
            0 => Some(Self::Coil),
            1 => Some(Self::Discrete),
            3 => Some(Self::Input),
            4 => Some(Self::Holding),
            _ => None,
        }
    }

    /// The leading Modicon digit.
    #[must_use]
    pub const fn modicon(self) -> u32 {
        match self {
            Self::Coil => 0,
            Self::Discrete => 1,
            Self::Input => 3,
            Self::Holding => 4,
        }
    }
}

/// How the bytes of a value of several registers come over the wire, where A is the most significant byte.
///
/// The letters are those of a 32-bit value; for 64 bits the same two rules apply to four registers: are the registers
/// in descending significance, and is the high byte of each sent first?
///
/// | order | registers | bytes in a register | 32 bits | 64 bits |
/// |---|---|---|---|---|
/// | `ABCD` | high first | high first | ABCD | ABCDEFGH |
/// | `CDAB` | low first | high first | CDAB | GHEFCDAB |
/// | `BADC` | high first | low first | BADC | BADCFEHG |
/// | `DCBA` | low first | low first | DCBA | HGFEDCBA |
///
/// Values of one register, and strings, are sent high byte first whatever the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Order {
    /// Big-endian throughout, as the standard says.
    #[default]
    ABCD,
    /// Low register first.
    CDAB,
    /// Bytes swapped in each register.
    BADC,
    /// Little-endian throughout.
    DCBA,
}

impl Order {
    /// All four.
    pub const ALL: [Self; 4] = [Self::ABCD, Self::CDAB, Self::BADC, Self::DCBA];

    /// Whether the least significant register comes first.
    #[must_use]
    pub const fn low_register_first(self) -> bool {
        matches!(self, Self::CDAB | Self::DCBA)
    }

    /// Whether the low byte of each register comes first.
    #[must_use]
    pub const fn low_byte_first(self) -> bool {
        matches!(self, Self::BADC | Self::DCBA)
    }

    /// The ending of a point's source text.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::ABCD => "be",
            Self::CDAB => "cdab",
            Self::BADC => "badc",
            Self::DCBA => "le",
        }
    }
}

/// What a point's registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum RegisterType {
    /// One coil or discrete input.
    Bool,
    /// One register.
    U16,
    /// One register, two's complement.
    I16,
    /// Two registers.
    U32,
    /// Two registers, two's complement.
    I32,
    /// Four registers.
    U64,
    /// Four registers, two's complement.
    I64,
    /// IEEE binary32 in two registers.
    F32,
    /// IEEE binary64 in four registers.
    F64,
    /// So many characters, two a register, high byte first; 1 to 250.
    String(u16),
}

impl RegisterType {
    /// How many registers it takes, or bits for a bool: 1 to 125.
    #[must_use]
    pub const fn width(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
            Self::String(characters) => characters.div_ceil(2),
        }
    }

    /// Its type on the wire to the centre.
    #[must_use]
    pub const fn point_type(self) -> PointType {
        match self {
            Self::Bool => PointType::Bool,
            Self::U16 | Self::I16 | Self::U32 | Self::I32 | Self::I64 => PointType::Int,
            Self::U64 => PointType::Uint64,
            Self::F32 => PointType::Float32,
            Self::F64 => PointType::Float64,
            Self::String(_) => PointType::String,
        }
    }

    /// Whether an [`Order`] means anything for it.
    #[must_use]
    pub const fn has_order(self) -> bool {
        matches!(self, Self::U32 | Self::I32 | Self::U64 | Self::I64 | Self::F32 | Self::F64)
    }
}

const NAMES: [(&str, RegisterType); 9] = [
    ("bool", RegisterType::Bool),
    ("u16", RegisterType::U16),
    ("i16", RegisterType::I16),
    ("u32", RegisterType::U32),
    ("i32", RegisterType::I32),
    ("u64", RegisterType::U64),
    ("i64", RegisterType::I64),
    ("f32", RegisterType::F32),
    ("f64", RegisterType::F64),
];

/// Longest string, in characters: 125 registers.
const MAX_STRING: u16 = 250;

impl fmt::Display for RegisterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(characters) => write!(f, "string({characters})"),
            other => f.write_str(NAMES.iter().find(|(_, ty)| ty == other).map_or("", |(name, _)| name)),
        }
    }
}

/// Why a text is no register type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no type is called {0:?}; known are bool u16 i16 u32 i32 u64 i64 f32 f64 and string(N) with N from 1 to 250")]
pub struct TypeError(String);

impl FromStr for RegisterType {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        if let Some((_, ty)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*ty);
        }
        let characters = text.strip_prefix("string(").and_then(|rest| rest.strip_suffix(')'));
        match characters.and_then(|number| number.parse().ok()) {
            Some(characters) if (1..=MAX_STRING).contains(&characters) => Ok(Self::String(characters)),
            _ => Err(TypeError(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for RegisterType {
    type Error = TypeError;

    fn try_from(text: String) -> Result<Self, TypeError> {
        text.parse()
    }
}

impl From<RegisterType> for String {
    fn from(ty: RegisterType) -> Self {
        format!("{ty}")
    }
}
