//! A serial line: noise, echoes, another master, late and doubled answers, dead slaves.

use std::time::Duration;

use tributary_protocols::modbus::config::Framing;
use tributary_protocols::modbus::register::Table;
use tributary_protocols::reading::{Outcome, Status};
use tributary_protocols::time::Mono;

use crate::plant::{Event, MS, Plant, Random, S, brought_all, data, pack, request, samples, seed, times, truth};

/// Bytes as a bad line hands them on: each changed, doubled or lost with this probability, in millionths.
fn noisy(bytes: &[u8], millionths: u64, random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in bytes {
        if random.below(1_000_000) >= millionths {
            out.push(*byte);
            continue;
        }
        match random.below(5) {
            0 => out.extend([*byte, random.byte()]),
            1 => {}
            2 => out.push(random.byte()),
            _ => out.push(byte ^ 1 << random.below(8)),
        }
    }
    out
}

/// Values that are not the register's.
fn wrong(plant: &Plant) -> usize {
    let wrong = |trace: &&tributary_protocols::modbus::bus::Trace| {
        let (unit, request) = &plant.requests[&trace.request];
        request
            .points
            .iter()
            .zip(samples(trace, request))
            .any(|(point, sample)| sample.status.has_value() && sample != truth(*unit, request, point.offset))
    };
    plant.traces.iter().filter(wrong).count()
}

#[test]
fn what_a_noisy_line_brings_is_true_or_nothing() {
    let seed = seed(71);
    let frames = times("TRIBUTARY_FRAMES", 10_000);
    let (mut undetected, mut asked, mut damaged) = (0, 0, 0);
    let kinds = [
        (1_000, false, false),
        (5_000, true, false),
        (10_000, false, true),
        (50_000, true, true),
        (50_000, false, false),
    ];
    for (run, (millionths, echo, master)) in (0..).zip(kinds) {
        let mut random = Random(seed + run);
        let requests = |unit: u8| {
            vec![
                request(Table::Holding, 10 * u16::from(unit), 10, 500),
                request(Table::Holding, 1_000, 10, 500),
                request(Table::Input, 5, 4, 500),
                request(Table::Coil, 0x300, 20, 500),
            ]
        };
        let units: Vec<_> = (1..=4).map(|unit| (unit, requests(unit))).collect();
        let keys = "serial = '/dev/x'\nbaud = 115200\ntimeout = '60ms'";
        let mut plant = Plant::new(keys, &units, move |question| {
            let mut bytes = if echo { question.frame.clone() } else { Vec::new() };
            if random.below(50) == 0 {
                bytes.extend((0..random.below(9)).map(|_| random.byte()));
            }
            if master && random.below(10) == 0 {
                // Another master asks another unit, and is answered.
                let (unit, count) =
                    (20 + u8::try_from(random.below(3)).unwrap(), 1 + u16::try_from(random.below(20)).unwrap());
                bytes.extend(pack(Framing::Rtu, 0, unit, &[3, 0, 1, 0, u8::try_from(count).unwrap()]));
                bytes.extend(pack(Framing::Rtu, 0, unit, &data(unit, 3, 1, count)));
            }
            if random.below(200) > 0 {
                bytes.extend(question.pack(&question.good()));
            }
            vec![Event::Bytes(MS, noisy(&bytes, millionths, &mut random))]
        });
        while (plant.asked.len() as u64) < frames / kinds.len() as u64 {
            plant.run(10 * S);
        }
        undetected += wrong(&plant);
        asked += plant.asked.len();
        let good = plant.traces.iter().filter(|trace| brought_all(trace)).count();
        let status = plant.bus.status(plant.now);
        damaged += status.crc_errors;
        println!(
            "{} of 10^6 bytes ill: {} questions, {good} of {} polls whole, {} CRC errors, {} time-outs, {} echoes, {} foreign",
            millionths,
            plant.asked.len(),
            plant.traces.len(),
            status.crc_errors,
            status.timeouts,
            status.echoes,
            status.foreign
        );
        let least = if millionths > 10_000 { 12 } else { 2 };
        assert!(good * least > plant.traces.len(), "{good} of {} polls", plant.traces.len());
        assert_eq!(status.echoes > 0, echo);
        assert_eq!(status.foreign > 0, master);
    }
    println!("{undetected} of {asked} frames wrong, {damaged} damaged");
    assert!(damaged > 0);
    assert!(undetected <= 1 + asked / 65_536, "{undetected} of {asked}: more than CRC-16 lets through");
}

#[test]
fn a_late_answer_is_never_taken_for_a_fresh_one() {
    let seed = seed(5);
    for link in ["serial = '/dev/x'\nbaud = 115200", "rtu_over_tcp = 'h:4001'"] {
        for (answer_max, units, percent) in [(200, 1, 30), (250, 3, 30), (1_000, 3, 50), (400, 2, 100)] {
            let mut random = Random(seed + answer_max);
            let requests = || {
                let same = |address| request(Table::Holding, address, 5, 200);
                vec![
                    same(0),
                    same(100),
                    same(200),
                    request(Table::Holding, 300, 6, 200),
                    request(Table::Input, 0, 5, 200),
                ]
            };
            let list: Vec<_> = (1..=units).map(|unit| (unit, requests())).collect();
            let keys = format!("{link}\ntimeout = '100ms'\nanswer_max = '{answer_max}ms'\nprobe_max = '1s'");
            let mut plant = Plant::new(&keys, &list, move |question| {
                let late = random.below(100) < percent;
                let after = if late { random.below(answer_max - 3) } else { 2 };
                let bytes = match random.below(20) {
                    0 => question.refusal(2),
                    _ => question.pack(&question.good()),
                };
                vec![Event::Bytes(Duration::from_millis(after), bytes)]
            });
            plant.run(600 * S);
            let traces = plant.check();
            let status = plant.bus.status(plant.now);
            let good: usize = traces.values().flatten().filter(|trace| brought_all(trace)).count();
            println!(
                "{answer_max} ms: {good} of {} polls whole, {} time-outs, {} stale",
                plant.traces.len(),
                status.timeouts,
                status.stale
            );
            assert!(status.stale * 4 > status.timeouts, "{status:?}");
            assert!(good > 100, "{good} of {}", plant.traces.len());
        }
    }
}

#[test]
fn a_late_refusal_is_nobody_s() {
    // The first answers late, the second refuses late; the third has the first's shape, and its own answer is good. The
    // fourth is out when the refusal comes.
    let blocks = [(0, 5), (50, 6), (100, 5), (150, 7)];
    let requests = blocks.map(|(address, count)| request(Table::Holding, address, count, 1_000)).to_vec();
    let keys = "serial = '/dev/x'\nbaud = 115200\ntimeout = '100ms'\nanswer_max = '400ms'";
    let mut plant = Plant::new(keys, &[(1, requests)], |question| {
        let good = question.pack(&question.good());
        match question.address() {
            0 => vec![Event::Bytes(350 * MS, good)],
            50..=55 => vec![Event::Bytes(140 * MS, question.refusal(2))],
            _ => vec![Event::Bytes(95 * MS, good)],
        }
    });
    plant.run(60 * S);
    let traces = plant.check();
    for id in [102, 103] {
        assert!(traces[&id].iter().all(|trace| brought_all(trace)), "{id} has what it asked for, always");
    }
    for id in [100, 101] {
        assert!(traces[&id].iter().all(|trace| trace.outcome == Outcome::All(Status::CommFail)));
    }
}

#[test]
fn a_doubled_answer_is_never_taken_for_the_next() {
    let seed = seed(6);
    for (pause, percent) in [(0, 100), (5, 100), (50, 100), (400, 100), (0, 10), (50, 10), (120, 10), (400, 3)] {
        let mut random = Random(seed + pause);
        let same = |address| request(Table::Holding, address, 5, 100);
        let units = [(1, vec![same(0), same(100), same(200)]), (2, vec![same(0), same(100)])];
        let keys = "serial = '/dev/x'\nbaud = 115200\ntimeout = '150ms'\nanswer_max = '450ms'";
        let mut plant = Plant::new(keys, &units, move |question| {
            let good = question.pack(&question.good());
            let mut events = vec![Event::Bytes(3 * MS, good.clone())];
            if random.below(100) < percent {
                let copies = if pause == 5 { 3 } else { 1 };
                for copy in 0..copies {
                    let after = 5 + copy * 4 + random.below(pause + 1);
                    events.push(Event::Bytes(Duration::from_millis(after), good.clone()));
                }
            }
            events
        });
        plant.run(300 * S);
        let traces = plant.check();
        let good: usize = traces.values().flatten().filter(|trace| brought_all(trace)).count();
        println!("{pause} ms, {percent} %: {good} of {} polls whole", plant.traces.len());
        assert!(good * 12 > plant.traces.len(), "{good} of {}", plant.traces.len());
        assert!(plant.bus.status(plant.now).stale > 0);
    }
}

#[test]
fn one_that_answers_three_times_is_not_believed_the_second_time_either() {
    let same = |address| request(Table::Holding, address, 5, 1_000);
    let keys = "serial = '/dev/x'\nbaud = 115200\ntimeout = '150ms'\nanswer_max = '400ms'";
    let mut plant = Plant::new(keys, &[(1, vec![same(0), same(100)])], |question| {
        let good = question.pack(&question.good());
        let at = if question.address() == 0 { [3, 12, 16] } else { [60, 70, 75] };
        at.map(|at| Event::Bytes(Duration::from_millis(at), good.clone())).to_vec()
    });
    plant.run(60 * S);
    let traces = plant.check();
    assert!(!brought_all(traces[&101][0]), "nobody could tell");
    assert!(traces.values().flatten().skip(4).all(|trace| brought_all(trace) || trace.at.since(plant.start) < 3 * S));
}

#[test]
fn a_time_out_begins_when_the_question_is_over_and_has_time_for_the_answer() {
    // 205 bytes at 1,200 baud take almost two seconds.
    let units = [(1, vec![request(Table::Holding, 0, 100, 10_000)])];
    let mut plant =
        Plant::new("serial = '/dev/x'\nbaud = 1200\ntimeout = '300ms'", &units, |question| match question.number {
            3 => Vec::new(),
            4 => vec![Event::Bytes(310 * MS, question.pack(&question.good()))],
            _ => vec![Event::Bytes(290 * MS, question.pack(&question.good()))],
        });
    plant.run(80 * S);
    let good: Vec<_> = plant.check()[&100].iter().map(|trace| brought_all(trace)).collect();
    assert_eq!(good[..6], [true, true, true, false, false, true]);
}

#[test]
fn equal_answers_are_no_copies() {
    // Every register holds 0: the answers to different questions are the same bytes.
    let same = |address| request(Table::Holding, address, 5, 100);
    let units = [(1, vec![same(0), same(100), same(200)])];
    let mut plant = Plant::new("serial = '/dev/x'\nbaud = 115200", &units, |question| {
        vec![Event::Bytes(3 * MS, question.pack(&[&[3, 10][..], &[0; 10]].concat()))]
    });
    plant.run(60 * S);
    assert!(plant.traces.iter().all(brought_all));
    let out: Duration = plant.bus.status(plant.now).busy;
    // 30 questions a second, each followed by 1.75 ms of silence, which are 5 % of the time.
    assert!(out < 60 * S * 23 / 100, "{out:?}: the suspicion costs a moment, once");
}

#[test]
fn three_dead_slaves_of_twenty_leave_the_others_nine_polls_of_ten() {
    for full in [false, true] {
        let healthy =
            |dead: u8| {
                let period = if full { 500 } else { 2_000 };
                let units: Vec<_> = (1..=20).map(|unit| (unit, vec![request(Table::Holding, 0, 20, period)])).collect();
                let mut plant =
                    Plant::new("serial = '/dev/x'\nbaud = 19200\ntimeout = '500ms'", &units, move |question| {
                        match question.unit <= dead {
                            true => Vec::new(),
                            false => vec![Event::Bytes(10 * MS, question.pack(&question.good()))],
                        }
                    });
                plant.run(20 * 60 * S);
                let traces = plant.check();
                let of_the_living =
                    traces.iter().filter(|(id, _)| plant.requests[*id].0 > 3).flat_map(|(_, traces)| traces);
                let good = of_the_living.filter(|trace| brought_all(trace)).count();
                let lost: Duration = plant.spec.timeout * u32::try_from(plant.bus.status(plant.now).timeouts).unwrap();
                (good, lost.as_secs_f64() / 1_200.0)
            };
        let ((all, _), (some, lost)) = (healthy(0), healthy(3));
        println!("full: {full}: {some} polls with three dead, {all} without; time-outs took {lost} of the time");
        assert!(some * 10 >= all * 9, "full: {full}: {some} of {all}");
        assert!(lost <= 0.11, "{lost}");
    }
}

#[test]
fn probes_take_their_share_and_no_more_however_many_are_dead() {
    for (share, least, most) in [(5, 0.03, 0.055), (10, 0.06, 0.105), (25, 0.07, 0.255)] {
        let units: Vec<_> = (1..=20).map(|unit| (unit, vec![request(Table::Holding, 0, 20, 1_000)])).collect();
        let keys = format!("serial = '/dev/x'\nbaud = 19200\ntimeout = '500ms'\nprobe_share = {share}");
        let mut plant = Plant::new(&keys, &units, |question| match question.unit <= 12 {
            true => Vec::new(),
            false => vec![Event::Bytes(10 * MS, question.pack(&question.good()))],
        });
        plant.run(300 * S);
        let before = plant.bus.status(plant.now).timeouts;
        plant.run(1_200 * S);
        plant.check();
        let timeouts = u32::try_from(plant.bus.status(plant.now).timeouts - before).unwrap();
        let lost = (plant.spec.timeout * timeouts).as_secs_f64() / 1_200.0;
        println!("{share} %: {lost}");
        assert!((least..=most).contains(&lost), "{share} %: {lost}");
        let probes = plant.bus.status(plant.now).probes;
        assert!(probes.abs_diff(u64::from(timeouts) + before - 36) <= 1, "{probes} probes");
    }
}

#[test]
fn a_slave_that_comes_back_is_polled_at_once() {
    let back = Mono::from_millis(305_000);
    let units: Vec<_> = (1..=5).map(|unit| (unit, vec![request(Table::Holding, 0, 5, 1_000)])).collect();
    let dead = std::rc::Rc::new(std::cell::Cell::new(true));
    let is_dead = std::rc::Rc::clone(&dead);
    let mut plant = Plant::new("serial = '/dev/x'\ntimeout = '200ms'\nprobe_max = '10s'", &units, move |question| {
        match question.unit == 3 && is_dead.get() {
            true => Vec::new(),
            false => vec![Event::Bytes(5 * MS, question.pack(&question.good()))],
        }
    });
    plant.run(300 * S);
    dead.set(false);
    plant.run(60 * S);
    let traces = plant.check();
    let first = traces[&102].iter().position(|trace| brought_all(trace)).unwrap();
    assert!(traces[&102][first].at.since(back) <= 11 * S);
    assert!(traces[&102][first..].iter().all(|trace| brought_all(trace)), "from then on every poll");
    let mut runs: Vec<_> = traces[&102].iter().map(|trace| trace.outcome.clone()).take(first).collect();
    runs.dedup();
    assert_eq!(runs.len(), 2, "COMM_FAIL, then OUT_OF_SERVICE without a break: {runs:?}");
    for id in [100, 101, 103, 104] {
        assert!(traces[&id].iter().all(|trace| brought_all(trace)), "the others miss nothing");
    }
}

#[test]
fn a_question_waits_for_silence() {
    let units = [(1, vec![request(Table::Holding, 0, 5, 1_000)])];
    let mut plant = Plant::new("serial = '/dev/x'\nbaud = 1200\ntimeout = '500ms'", &units, |question| {
        vec![Event::Bytes(MS, question.pack(&question.good()))]
    });
    assert!(plant.spec.quiet.abs_diff(plant.character * 7 / 2) < Duration::from_micros(1));
    plant.run(2 * S);
    for ahead in [40, 20, 5] {
        let due = plant.bus.next_deadline().unwrap();
        plant.run(due.since(plant.now) - ahead * MS);
        plant.bus.handle_bytes(plant.now, &[0x55]);
        let (noise, asked) = (plant.now, plant.asked.len());
        plant.run(S / 2);
        let (at, _) = plant.asked[asked];
        assert_eq!(at, due.max(noise + plant.spec.quiet), "{ahead} ms ahead");
    }
    plant.check();
}

#[test]
fn bytes_may_come_in_any_pieces() {
    let seed = seed(8);
    for link in ["serial = '/dev/x'\nbaud = 115200", "rtu_over_tcp = 'h:4001'"] {
        for most in [1, 2, 7, 300] {
            let mut random = Random(seed + most);
            let units = [(1, vec![request(Table::Holding, 0, 50, 1_000), request(Table::Coil, 0x300, 20, 1_000)])];
            let mut plant = Plant::new(link, &units, move |question| {
                let (mut after, mut events) = (2 * MS, Vec::new());
                let mut bytes = question.pack(&question.good());
                while !bytes.is_empty() {
                    let rest = bytes.split_off(bytes.len().min(1 + usize::try_from(random.below(most)).unwrap()));
                    let characters = u32::try_from(bytes.len()).unwrap();
                    events.push(Event::Bytes(after, bytes));
                    bytes = rest;
                    after += MS / 10 * characters + Duration::from_micros(random.below(7_000));
                }
                events
            });
            plant.run(60 * S);
            let traces = plant.check();
            assert!(traces.values().flatten().all(|trace| brought_all(trace)), "{link}, pieces of {most}");
        }
    }
}

#[test]
fn an_echo_that_looks_like_the_answer_is_none() {
    // 20 bits are three bytes, and so says the address 0x0300: the question is a well-formed answer to itself.
    for echo in [true, false] {
        let units = [(1, vec![request(Table::Coil, 0x300, 20, 500)])];
        let mut plant = Plant::new("serial = '/dev/x'", &units, move |question| {
            let mut bytes = if echo { question.frame.clone() } else { Vec::new() };
            bytes.extend(question.pack(&question.good()));
            vec![Event::Bytes(MS, bytes)]
        });
        plant.run(20 * S);
        assert!(plant.check()[&100].iter().all(|trace| brought_all(trace)));
        assert_eq!(plant.bus.status(plant.now).echoes > 0, echo);
    }
}

#[test]
fn another_master_that_asks_the_same_makes_the_answer_worthless() {
    let mut random = Random(seed(9));
    let units = [(1, vec![request(Table::Holding, 0, 5, 500), request(Table::Holding, 50, 5, 500)])];
    let mut plant = Plant::new("serial = '/dev/x'\nbaud = 115200", &units, move |question| {
        let mut bytes = Vec::new();
        if random.below(3) == 0 {
            // The other one was faster: its question, its answer, then ours.
            bytes.extend(pack(Framing::Rtu, 0, 1, &[3, 0, 200, 0, 5]));
            bytes.extend(pack(Framing::Rtu, 0, 1, &data(1, 3, 200, 5)));
        }
        bytes.extend(question.pack(&question.good()));
        vec![Event::Bytes(MS, bytes)]
    });
    plant.run(120 * S);
    let traces = plant.check();
    assert!(traces.values().flatten().any(|trace| brought_all(trace)));
    assert!(plant.bus.status(plant.now).foreign > 20);
}

#[test]
fn an_unplugged_adapter_is_nobody_s_fault() {
    let units: Vec<_> = (1..=3).map(|unit| (unit, vec![request(Table::Holding, 0, 5, 500)])).collect();
    let mut plant = Plant::new("serial = '/dev/x'\nreconnect_max = '2s'", &units, |question| {
        vec![Event::Bytes(MS, question.pack(&question.good()))]
    });
    plant.run(10 * S);
    plant.refuse = true;
    plant.bus.handle_closed(plant.now, "the adapter is gone");
    plant.run(60 * S);
    assert!(plant.last(100).iter().all(|sample| sample.status == Status::CommFail));
    plant.refuse = false;
    plant.run(3 * S);
    let before = plant.traces.len();
    plant.run(10 * S);
    assert!(plant.traces[before..].iter().all(brought_all), "all at once, none in quarantine");
    plant.check();
}

#[test]
fn units_that_went_silent_before_the_line_went_are_asked_at_once_when_it_is_back() {
    let units: Vec<_> = (1..=3).map(|unit| (unit, vec![request(Table::Holding, 0, 5, 500)])).collect();
    let dead = std::rc::Rc::new(std::cell::Cell::new(false));
    let is_dead = std::rc::Rc::clone(&dead);
    let mut plant = Plant::new("serial = '/dev/x'\ntimeout='200ms'\nreconnect_max = '2s'", &units, move |question| {
        match is_dead.get() {
            true => Vec::new(),
            false => vec![Event::Bytes(MS, question.pack(&question.good()))],
        }
    });
    plant.run(10 * S);
    dead.set(true);
    plant.run(300 * S);
    let mut probes = plant.asked.iter().rev().filter(|(_, question)| question.unit == 1).map(|(at, _)| *at);
    assert!(probes.next().unwrap().since(probes.next().unwrap()) >= 25 * S, "they are asked rarely");
    plant.refuse = true;
    plant.bus.handle_closed(plant.now, "the adapter is gone");
    plant.run(3 * S);
    plant.refuse = false;
    dead.set(false);
    plant.run(3 * S);
    let before = plant.traces.len();
    plant.run(5 * S);
    assert!(plant.traces[before..].iter().all(brought_all));
    plant.check();
}

#[test]
fn a_connection_is_given_up_between_polls_where_devices_want_it() {
    for (keys, period, release) in [
        ("release = true", 10_000, true),
        ("release = true\nquiet = '15ms'", 1_000, true),
        ("release = true", 200, false),
        ("release = true\nconnect_delay = '2s'", 3_000, false),
        ("release = false", 10_000, false),
    ] {
        let units = [(1, vec![request(Table::Holding, 0, 5, period), request(Table::Input, 0, 5, period)])];
        let mut plant = Plant::new(&format!("tcp = 'h:502'\n{keys}"), &units, |question| {
            vec![Event::Bytes(MS, question.pack(&question.good()))]
        });
        plant.run(Duration::from_millis(u64::from(period) * 20));
        let traces = plant.check();
        assert!(traces.values().flatten().all(|trace| brought_all(trace)), "{keys}");
        let expected = if release { 19..=21 } else { 1..=1 };
        assert!(expected.contains(&plant.connects), "{keys}: {} connections", plant.connects);
        assert_eq!((plant.releases > 0, plant.disconnects), (release, 0));
    }
}

#[test]
fn a_line_that_never_rests_is_asked_all_the_same() {
    for link in ["serial = '/dev/x'\nbaud = 115200", "rtu_over_tcp = 'h:4001'"] {
        let units = [(1, vec![request(Table::Holding, 0, 5, 500)])];
        let mut plant = Plant::new(&format!("{link}\ntimeout = '100ms'"), &units, |question| {
            // Noise every 3 ms, whether asked or not.
            let noise = (0..300).map(|n| Event::Bytes(Duration::from_millis(3 * n), vec![0xA7]));
            noise.chain([Event::Bytes(10 * MS, question.pack(&question.good()))]).collect()
        });
        plant.run(60 * S);
        let traces = plant.check();
        let good = traces[&100].iter().filter(|trace| brought_all(trace)).count();
        assert!(good > 100, "{link}: {good}");
    }
}
