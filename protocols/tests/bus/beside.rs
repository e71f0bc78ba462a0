//! Questions beside the schedule.

use std::time::Duration;

use tributary_protocols::modbus::bus::{ASKS, AdHoc, AskError};
use tributary_protocols::modbus::frame::Pdu;
use tributary_protocols::modbus::register::Table;

use crate::plant::{Event, MS, Plant, Question, S, brought_all, request};

const LINKS: [&str; 3] = ["tcp = 'h:502'", "rtu_over_tcp = 'h:502'", "serial = '/dev/x'\nbaud = 19200"];

fn ask(id: u64, unit: u8, pdu: &[u8]) -> AdHoc {
    AdHoc { id, unit, pdu: Pdu::from_slice(pdu).unwrap(), timeout: None }
}

/// A device that knows more than its registers.
fn versed(question: &Question) -> Vec<u8> {
    match question.pdu[..] {
        [17] => question.pack(&[17, 5, b'p', b'u', b'm', b'p', 0xFF]),
        [0x2B, 0x0E, 1, 0] => {
            question.pack(&[0x2B, 0x0E, 1, 1, 0, 0, 2, 0, 4, b'A', b'C', b'M', b'E', 1, 2, b'X', b'1'])
        }
        [6, ..] => question.pack(&question.pdu),
        [8, ..] => question.pack(&question.pdu),
        [16, a, b, c, d, ..] => question.pack(&[16, a, b, c, d]),
        [1..=4, ..] => question.pack(&question.good()),
        _ => question.refusal(1),
    }
}

#[test]
fn a_bus_without_polls_asks_whom_it_is_told() {
    for link in LINKS {
        let mut plant = Plant::new(link, &[], |question| vec![Event::Bytes(3 * MS, versed(question))]);
        plant.run(S);
        assert_eq!((plant.connects, plant.bus.next_deadline()), (0, None), "nobody is asked");
        let questions: [&[u8]; 9] = [
            &[3, 0, 7, 0, 2],
            &[4, 0, 7, 0, 1],
            &[1, 0, 7, 0, 9],
            &[2, 0, 7, 0, 1],
            &[17],
            &[0x2B, 0x0E, 1, 0],
            &[16, 0, 1, 0, 1, 2, 0, 9],
            &[8, 0, 0, 0xA5, 0x37],
            &[99],
        ];
        for (id, pdu) in (0..).zip(questions) {
            plant.bus.handle_ask(plant.now, ask(id, 200, pdu)).unwrap();
        }
        plant.run(2 * S);
        assert_eq!(plant.replies.len(), questions.len(), "{link}");
        for (id, (_, its, reply)) in (0..).zip(&plant.replies) {
            assert_eq!(*its, id);
            let pdu = reply.as_ref().unwrap_or_else(|error| panic!("{link}, {id}: {error}"));
            let (_, question) = &plant.asked[usize::try_from(id).unwrap()];
            assert_eq!(question.pack(pdu), versed(question), "{link}, {id}");
        }
        assert_eq!(plant.connects, 1);
    }
}

#[test]
fn writing_one_register_is_told_from_its_echo_by_what_the_line_does() {
    for echo in [false, true] {
        let mut plant =
            Plant::new("serial = '/dev/x'", &[(1, vec![request(Table::Holding, 0, 2, 500)])], move |question| {
                let mut bytes = if echo { question.frame.clone() } else { Vec::new() };
                bytes.extend(versed(question));
                vec![Event::Bytes(MS, bytes)]
            });
        plant.run(2 * S);
        plant.bus.handle_ask(plant.now, ask(1, 1, &[6, 0, 1, 0, 2])).unwrap();
        plant.run(S);
        assert_eq!(plant.replies[0].2, Ok(vec![6, 0, 1, 0, 2]));
        assert_eq!(plant.bus.status(plant.now).echoes > 0, echo);
        assert!(plant.check()[&100].iter().all(|trace| brought_all(trace)));
    }
}

#[test]
fn each_way_to_have_no_answer_is_named() {
    let mut plant = Plant::new("tcp = 'h:502'\ntimeout = '100ms'", &[], |question| match question.unit {
        1 => Vec::new(),
        2 => vec![Event::Close(MS)],
        3 => vec![Event::Bytes(MS, question.pack(&[4, 2, 0, 0]))],
        _ => vec![Event::Bytes(MS, versed(question))],
    });
    let pdu = [3, 0, 0, 0, 1];
    assert_eq!(plant.bus.handle_ask(plant.now, ask(0, 0, &pdu)), Err(AskError::Broadcast));
    assert_eq!(plant.bus.handle_ask(plant.now, ask(0, 1, &[])), Err(AskError::Empty));
    for unit in 1..=4 {
        plant.bus.handle_ask(plant.now, ask(unit.into(), unit, &pdu)).unwrap();
    }
    plant.run(S);
    let results: Vec<_> = plant.replies.iter().map(|(_, _, result)| result.clone()).collect();
    assert_eq!(results[..2], [Err(AskError::NoAnswer), Err(AskError::Closed)]);
    assert!(matches!(results[2], Err(AskError::Doubt(_))), "{:?}", results[2]);
    assert!(results[3].is_ok(), "the next is asked on a new connection");
    let free = (0..100).take_while(|id| plant.bus.handle_ask(plant.now, ask(*id, 4, &pdu)).is_ok()).count();
    assert_eq!((free, plant.bus.handle_ask(plant.now, ask(0, 4, &pdu))), (ASKS, Err(AskError::Full)));
    plant.run(S);
    plant.refuse = true;
    plant.bus.handle_closed(plant.now, "reset");
    plant.replies.clear();
    for id in 0..3 {
        plant.bus.handle_ask(plant.now, ask(id, 4, &pdu)).unwrap();
    }
    plant.run(S);
    assert_eq!(plant.replies.len(), 3);
    assert!(plant.replies.iter().all(|(_, _, result)| *result == Err(AskError::NoConnection("refused".into()))));
}

#[test]
fn polls_and_other_questions_share_a_full_bus() {
    // Ten requests of 100 ms each a second: not one fits beside them.
    let units: Vec<_> = (1..=10).map(|unit| (unit, vec![request(Table::Holding, 0, 1, 1_000)])).collect();
    for slow in [false, true] {
        let mut plant = Plant::new("tcp = 'h:502'\ntimeout = '900ms'", &units, move |question| match question.unit {
            200 if slow => Vec::new(),
            _ => vec![Event::Bytes(99 * MS, versed(question))],
        });
        let mut id = 0;
        for _ in 0..1_200 {
            while plant.bus.handle_ask(plant.now, ask(id, 200, &[3, 0, 0, 0, 1])).is_ok() {
                id += 1;
            }
            plant.run(100 * MS);
        }
        plant.check();
        let beside: u32 = plant.asked.iter().map(|(_, question)| u32::from(question.unit == 200)).sum();
        let polls = plant.asked.len() - beside as usize;
        let each = if slow { 900 } else { 99 };
        let share = f64::from(beside * each) / 120_000.0;
        assert!((0.20..=0.27).contains(&share), "slow: {slow}: {beside} questions took {share} of the bus");
        assert!(polls >= 850, "slow: {slow}: {polls} polls of 1,200");
    }
}

#[test]
fn what_fits_between_the_polls_costs_them_nothing() {
    for link in LINKS {
        let units = [(1, vec![request(Table::Holding, 0, 10, 1_000)])];
        let mut plant = Plant::new(&format!("{link}\ntimeout='200ms'"), &units, |question| {
            vec![Event::Bytes(5 * MS, versed(question))]
        });
        plant.run(5 * S + 10 * MS);
        let mut waited = Duration::ZERO;
        for id in 0..200 {
            let (unit, from) = (1 + u8::try_from(id % 5).unwrap(), plant.now);
            plant.bus.handle_ask(plant.now, ask(id, unit, &[17])).unwrap();
            plant.run(100 * MS);
            let (at, _, result) = plant.replies.last().unwrap();
            assert!(result.is_ok());
            waited = waited.max(at.since(from));
        }
        let traces = plant.check();
        assert!(traces[&100].iter().all(|trace| brought_all(trace)));
        assert!(waited < 100 * MS, "{link}: {waited:?}");
        assert_eq!(plant.bus.status(plant.now).missed, 0);
    }
}
