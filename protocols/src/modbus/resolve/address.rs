//! Addresses as manuals write them, in the convention that was declared, to table and zero-based address. Never guessed.

use alloc::format;

use crate::fault::Faults;
use crate::modbus::config::{Addressing, PointRow};
use crate::modbus::register::Table;

/// Table and zero-based address of a row, or faults.
pub(super) fn place(row: &PointRow, addressing: Addressing, faults: &mut Faults<'_>) -> Option<(Table, u16)> {
    let Some(written) = row.address.as_int() else {
        faults.add("address", format!("{} is no address", row.address), "a whole number, or a string like \"0x10\"");
        return None;
    };
    let (base, digits) = match addressing {
        Addressing::Zero => return plain(row, written, 0, faults),
        Addressing::One => return plain(row, written, 1, faults),
        Addressing::Modicon5 => (10_000, "five digits, 40001 to 49999 for holding registers"),
        Addressing::Modicon6 => (100_000, "six digits, 400001 to 465536 for holding registers"),
    };
    let wrong = format!("{written} is no address in {}", if base == 10_000 { "modicon5" } else { "modicon6" });
    let table = u32::try_from(written / base).ok().and_then(Table::from_modicon);
    let number = written % base;
    let (Some(table), 1..=65_536) = (table, number) else {
        faults.add("address", wrong, digits);
        return None;
    };
    if let Some(declared) = row.table.filter(|declared| *declared != table) {
        let message = format!("{written} begins with {}, which is table {:?}", table.modicon(), table.name());
        let help = format!("table = {:?}, or an address that begins with {}", table.name(), declared.modicon());
        faults.add("address", message, help);
        return None;
    }
    within(row, table, number - 1, faults)
}

/// An address that says nothing of its table; the first register is `base`.
fn plain(row: &PointRow, written: i128, base: i128, faults: &mut Faults<'_>) -> Option<(Table, u16)> {
    let in_range = (base..=65_535 + base).contains(&written);
    if !in_range {
        let message = format!("{written} is out of range");
        faults.add(
            "address",
            message,
            format!("{base} to {}; 40001 and the like need addressing = \"modicon5\"", 65_535 + base),
        );
    }
    let Some(table) = row.table else {
        faults.add("table", "is missing", "\"coil\", \"discrete\", \"input\" or \"holding\"");
        return None;
    };
    if in_range { within(row, table, written - base, faults) } else { None }
}

/// The value ends within the table.
fn within(row: &PointRow, table: Table, address: i128, faults: &mut Faults<'_>) -> Option<(Table, u16)> {
    if address + i128::from(row.ty.width()) > 65_536 {
        let message = format!("{} from {} on ends behind the table's last register", row.ty, row.address);
        faults.add("address", message, "a table has 65,536 registers");
        return None;
    }
    u16::try_from(address).ok().map(|address| (table, address))
}
