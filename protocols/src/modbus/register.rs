//! The words of a Modbus device: tables, the types that registers hold, and the order of their bytes.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::modbus::config::MAX_REGISTERS;
use crate::value::PointType;

/// One of the four address spaces of a device (Modbus Application Protocol V1.1b3, 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
/// Values of one register are sent high byte first whatever the order; texts have layouts of their own ([`Layout`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
pub enum RegisterType {
    /// One coil or discrete input.
    Bool,
    /// The high byte of a register.
    U8High,
    /// The low byte of a register.
    U8Low,
    /// The high byte of a register, two's complement.
    I8High,
    /// The low byte of a register, two's complement.
    I8Low,
    /// One register.
    U16,
    /// One register, two's complement.
    I16,
    /// The low 24 bits of two registers.
    U24,
    /// The low 24 bits of two registers, two's complement.
    I24,
    /// Two registers.
    U32,
    /// Two registers, two's complement.
    I32,
    /// Four registers.
    U64,
    /// Four registers, two's complement.
    I64,
    /// IEEE binary16 in one register.
    F16,
    /// IEEE binary32 in two registers.
    F32,
    /// IEEE binary64 in four registers.
    F64,
    /// Two decimal digits in the low byte of a register, four bits each.
    Bcd8,
    /// Four decimal digits in a register.
    Bcd16,
    /// Six decimal digits in the low 24 bits of two registers.
    Bcd24,
    /// Eight decimal digits in two registers.
    Bcd32,
    /// So many characters, 1 to 250, or 1 to 125 where each has a register.
    String(Layout, u16),
    /// So many bytes, 1 to 250, two a register, high byte first: shown in hexadecimal.
    Bytes(u16),
}

/// Where the characters of a text stand in its registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Two a register, high byte first.
    #[default]
    HighFirst,
    /// Two a register, low byte first.
    LowFirst,
    /// One a register, in its low byte.
    Low,
    /// One a register, in its high byte.
    High,
}

impl RegisterType {
    /// How many registers it takes, or bits for a bool: 1 to 125.
    #[must_use]
    pub const fn width(self) -> u16 {
        match self {
            Self::Bool | Self::U8High | Self::U8Low | Self::I8High | Self::I8Low => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bcd8 | Self::Bcd16 => 1,
            Self::U24 | Self::I24 | Self::U32 | Self::I32 | Self::F32 | Self::Bcd24 | Self::Bcd32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
            Self::String(Layout::HighFirst | Layout::LowFirst, characters) | Self::Bytes(characters) => {
                characters.div_ceil(2)
            }
            Self::String(Layout::Low | Layout::High, characters) => characters,
        }
    }

    /// How many bits a number of this type has; 0 of a text.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bool => 1,
            Self::U8High | Self::U8Low | Self::I8High | Self::I8Low | Self::Bcd8 => 8,
            Self::U16 | Self::I16 | Self::F16 | Self::Bcd16 => 16,
            Self::U24 | Self::I24 | Self::Bcd24 => 24,
            Self::U32 | Self::I32 | Self::F32 | Self::Bcd32 => 32,
            Self::U64 | Self::I64 | Self::F64 => 64,
            Self::String(..) | Self::Bytes(_) => 0,
        }
    }

    /// Its type on the wire to the centre.
    #[must_use]
    pub const fn point_type(self) -> PointType {
        match self {
            Self::Bool => PointType::Bool,
            Self::U8High | Self::U8Low | Self::I8High | Self::I8Low | Self::U16 | Self::I16 => PointType::Int,
            Self::U24 | Self::I24 | Self::U32 | Self::I32 | Self::I64 => PointType::Int,
            Self::Bcd8 | Self::Bcd16 | Self::Bcd24 | Self::Bcd32 => PointType::Int,
            Self::U64 => PointType::Uint64,
            Self::F16 | Self::F32 => PointType::Float32,
            Self::F64 => PointType::Float64,
            Self::String(..) | Self::Bytes(_) => PointType::String,
        }
    }

    /// Whether an [`Order`] means anything for it.
    #[must_use]
    pub const fn has_order(self) -> bool {
        !matches!(self, Self::String(..) | Self::Bytes(_)) && self.width() > 1
    }

    /// Whether it is a two's complement integer.
    #[must_use]
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::I8High | Self::I8Low | Self::I16 | Self::I24 | Self::I32 | Self::I64)
    }

    /// Whether single bits of it can be points.
    #[must_use]
    pub const fn is_bit_field(self) -> bool {
        matches!(self, Self::U8High | Self::U8Low | Self::U16 | Self::U24 | Self::U32 | Self::U64)
    }

    /// Whether it is decimal digits of four bits each.
    #[must_use]
    pub const fn is_bcd(self) -> bool {
        matches!(self, Self::Bcd8 | Self::Bcd16 | Self::Bcd24 | Self::Bcd32)
    }
}

const NAMES: [(&str, RegisterType); 20] = [
    ("bool", RegisterType::Bool),
    ("u8_high", RegisterType::U8High),
    ("u8_low", RegisterType::U8Low),
    ("i8_high", RegisterType::I8High),
    ("i8_low", RegisterType::I8Low),
    ("u16", RegisterType::U16),
    ("i16", RegisterType::I16),
    ("u24", RegisterType::U24),
    ("i24", RegisterType::I24),
    ("u32", RegisterType::U32),
    ("i32", RegisterType::I32),
    ("u64", RegisterType::U64),
    ("i64", RegisterType::I64),
    ("f16", RegisterType::F16),
    ("f32", RegisterType::F32),
    ("f64", RegisterType::F64),
    ("bcd8", RegisterType::Bcd8),
    ("bcd16", RegisterType::Bcd16),
    ("bcd24", RegisterType::Bcd24),
    ("bcd32", RegisterType::Bcd32),
];

const LAYOUTS: [(&str, Layout); 4] = [
    ("string", Layout::HighFirst),
    ("string_swapped", Layout::LowFirst),
    ("string_low", Layout::Low),
    ("string_high", Layout::High),
];

impl RegisterType {
    /// All types but texts.
    pub const NUMBERS: [Self; 20] = {
        let mut all = [Self::Bool; 20];
        let mut at = 0;
        while at < all.len() {
            all[at] = NAMES[at].1;
            at += 1;
        }
        all
    };
}

impl fmt::Display for RegisterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(layout, characters) => {
                let name = LAYOUTS.iter().find(|(_, its)| its == layout).map_or("", |(name, _)| name);
                write!(f, "{name}({characters})")
            }
            Self::Bytes(bytes) => write!(f, "bytes({bytes})"),
            other => f.write_str(NAMES.iter().find(|(_, ty)| ty == other).map_or("", |(name, _)| name)),
        }
    }
}

/// Why a text is no register type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no type is called {0:?}; known are bool u8_high u8_low i8_high i8_low u16 i16 u24 i24 u32 i32 u64 i64 f16 f32 f64 \
     bcd8 bcd16 bcd24 bcd32, and string(N) string_swapped(N) string_low(N) string_high(N) bytes(N) that fit into 125 registers"
)]
pub struct TypeError(String);

impl FromStr for RegisterType {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        if let Some((_, ty)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*ty);
        }
        let sized = text.strip_suffix(')').and_then(|rest| rest.split_once('('));
        let sized = sized.and_then(|(name, number)| {
            let size = number.parse().ok().filter(|size| *size > 0)?;
            match LAYOUTS.iter().find(|(known, _)| *known == name) {
                Some((_, layout)) => Some(Self::String(*layout, size)),
                None => (name == "bytes").then_some(Self::Bytes(size)),
            }
        });
        sized.filter(|ty| ty.width() <= MAX_REGISTERS).ok_or_else(|| TypeError(text.chars().take(40).collect()))
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
