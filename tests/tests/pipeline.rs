//! The pipeline alone, told moment by moment what no simulated world is sure to meet: a clock that becomes right without a
//! step (contract rule 17), a batch that is sealed while an older commit is under way (rule 23), a reload.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;
use tributary_core::model::{self, Deadband, Model, PointKey, Statistic, Window};
use tributary_core::pipeline::{Arrival, Now, Output, Pipeline, Receipt};
use tributary_core::record::Head;
use tributary_core::store::{Recovered, StoreCommand};
use tributary_proto::pb::{Batch, TimeQuality};
use tributary_proto::{MAX_INFLATED, inflate};
use tributary_protocols::reading::{Outcome, Poll, Sample, StampedBy};
use tributary_protocols::time::{Mono, Wall};
use tributary_protocols::value::{PointType, Value};
use tributary_tests::settings;
use tributary_tests::store::MemStore;

const START: Now = Now { mono: Mono::from_millis(1_000), wall: Wall(1_700_000_000_000) };

fn second_after(now: Now) -> Now {
    Now { mono: now.mono + Duration::from_secs(1), wall: Wall(now.wall.0 + 1_000) }
}

fn pipeline(model: Model) -> Pipeline {
    Pipeline::new(settings::usual(1), model, Recovered::default(), START).expect("a sound model")
}

/// What a record says of its clock, and how many readings are in it.
fn said(record: &[u8]) -> (TimeQuality, u32) {
    let (head, body) = Head::split(record).expect("a record");
    let body = if head.zstd { inflate(body, MAX_INFLATED).expect("a body") } else { body.to_vec() };
    (Batch::decode(&*body).expect("a batch").time_quality(), head.readings)
}

/// Without a step: the clock was right before anybody said so.
#[test]
fn a_change_of_quality_seals_the_open_batch() {
    let (mut now, mut pipeline) = (START, pipeline(settings::one_point()));
    let (mut disk, mut found) = (MemStore::new(1 << 20), Vec::new());
    for quality in [TimeQuality::Unsynced, TimeQuality::Synced, TimeQuality::Unsynced] {
        pipeline.handle_clock(now, quality, 0);
        let outcome = Outcome::Samples(vec![Sample::good(1)]);
        pipeline.handle_poll(now, &Poll { request: 0, at: now.wall, outcome });
    }
    // A batch is sealed after a second, a commit begins a second after the last.
    for _ in 0..3 {
        now = second_after(now);
        while let Some(output) = pipeline.poll(now) {
            if let Output::Store(command) = output {
                if let StoreCommand::Commit(commit) = &command {
                    found.extend(commit.records.iter().map(|(_, record)| said(record)));
                }
                pipeline.handle_store(now, command.run(&mut disk));
            }
        }
    }
    found.retain(|(_, readings)| *readings > 0);
    assert_eq!(found, [(TimeQuality::Unsynced, 1), (TimeQuality::Synced, 1), (TimeQuality::Unsynced, 1)]);
}

/// The commit of the start is still under way when the batch with the message's reading is sealed.
#[test]
fn a_message_is_acknowledged_after_its_own_commit() {
    let model = Model { requests: Vec::new(), ..settings::one_point() };
    let (mut now, mut pipeline, mut disk) = (START, pipeline(model), MemStore::new(1 << 20));
    let (mut under_way, mut stored, mut released) = (VecDeque::new(), false, false);
    let arrival = Arrival { point: PointKey(0), at: now.wall, stamped_by: StampedBy::Agent, sample: Sample::good(1) };
    pipeline.handle_message(now, vec![arrival], Some(Receipt(1)));
    for answered in [false, true, true, true] {
        loop {
            match pipeline.poll(now) {
                Some(Output::Store(command)) => under_way.push_back(command),
                Some(Output::Release(Receipt(1))) => {
                    assert!(stored, "the reading is in no commit that has returned");
                    released = true;
                }
                Some(_) => {}
                None => {
                    let Some(command) = under_way.pop_front_if(|_| answered) else { break };
                    stored |= matches!(&command, StoreCommand::Commit(commit) if !commit.records.is_empty());
                    pipeline.handle_store(now, command.run(&mut disk));
                }
            }
        }
        now = second_after(now);
    }
    assert!(released, "the message is acknowledged in the end");
}

/// Runs the pipeline of one point for five polls, gives it `changed`'s model, and polls once more.
fn reloaded(point: &model::Point, changed: impl FnOnce(&mut model::Point)) -> [Pipeline; 2] {
    let model = |point: &model::Point| Model { points: vec![point.clone()], ..settings::one_point() };
    let poll = |at: Now| Poll { request: 0, at: at.wall, outcome: Outcome::Samples(vec![Sample::good(1)]) };
    let live = |new: Option<Model>| {
        let (mut now, mut pipeline, mut disk) = (START, pipeline(model(point)), MemStore::new(1 << 20));
        let mut turn = |now: Now, pipeline: &mut Pipeline| {
            while let Some(output) = pipeline.poll(now) {
                if let Output::Store(command) = output {
                    pipeline.handle_store(now, command.run(&mut disk));
                }
            }
        };
        for _ in 0..5 {
            pipeline.handle_poll(now, &poll(now));
            turn(now, &mut pipeline);
            now = second_after(now);
        }
        if let Some(new) = new {
            assert!(pipeline.can_reload());
            pipeline.reload(now, settings::usual(2), &new).expect("a sound model");
            assert!(pipeline.ledger().holds(pipeline.held()), "{:?}", pipeline.ledger());
        }
        pipeline.handle_poll(now, &poll(now));
        turn(now, &mut pipeline);
        assert!(pipeline.ledger().holds(pipeline.held()), "{:?}", pipeline.ledger());
        pipeline
    };
    let mut new = point.clone();
    changed(&mut new);
    [live(None), live(Some(model(&new)))]
}

/// Ledger and catalogue after a reload, beside those without.
fn told(pipelines: [Pipeline; 2]) -> [(u64, u64, u64, u32); 2] {
    pipelines.map(|it| (it.ledger().admitted, it.ledger().filtered, it.held(), it.catalog_rev()))
}

#[test]
fn what_a_reload_does_not_change_goes_on() {
    let window = Some(Window { every_ms: 3_600_000, stats: vec![Statistic::Count] });
    let point = settings::one_point().points[0].clone();
    let (windowed, counter) =
        (model::Point { window, ..point.clone() }, model::Point { counter: true, raw: true, ..point.clone() });
    let damped = model::Point { deadband: Deadband::Absolute(1.0), raw: true, ..point.clone() };
    for point in [windowed, counter, damped, model::Point { raw: true, ..point }] {
        let [without, with] = told(reloaded(&point, |_| {}));
        assert_eq!(without, with, "{point:?}");
        let [(.., before), (.., after)] = told(reloaded(&point, |point| point.description = "a word".into()));
        assert_eq!(after, before + 1, "a description is another revision of the same point");
    }
}

#[test]
fn what_a_reload_changes_begins_anew() {
    let stats = vec![Statistic::Count];
    let point = settings::one_point().points[0].clone();
    let windowed = model::Point { window: Some(Window { every_ms: 3_600_000, stats: stats.clone() }), ..point.clone() };
    let [without, with] = told(reloaded(&windowed, |point| point.window = Some(Window { every_ms: 60_000, stats })));
    assert_eq!(without, (6, 0, 6, 1), "six in the open window");
    // Five are folded, their count is a reading of its own, and the sixth is in the new window.
    assert_eq!(with, (7, 5, 2, 2));
    // Sent raw beside the window from now on, or no more: the window is another.
    let [_, with] = told(reloaded(&windowed, |point| point.raw = true));
    assert_eq!(with, (7, 5, 2, 2));
    let both = model::Point { raw: true, ..windowed };
    let [without, with] = told(reloaded(&both, |point| point.raw = false));
    assert_eq!((without, with), ((6, 0, 6, 1), (7, 0, 7, 1)));
    let damped = model::Point { deadband: Deadband::Absolute(1.0), raw: true, ..point };
    let [without, with] = told(reloaded(&damped, |point| point.unit = "V".into()));
    assert_eq!(without, (6, 5, 1, 1), "one sent");
    assert_eq!(with, (6, 4, 2, 2), "another point: its first reading is sent");
}

/// Other certificates: a connection is made anew at once, and one that could not be made is tried within a second instead
/// of after a pause of minutes.
#[test]
fn a_renewal_makes_the_connection_anew() {
    let (mut now, mut pipeline, mut disk) = (START, pipeline(settings::one_point()), MemStore::new(1 << 20));
    // What the pipeline wants of the wire until then.
    let mut wants = |pipeline: &mut Pipeline, now: Now| {
        let mut wanted = String::new();
        while let Some(output) = pipeline.poll(now) {
            match output {
                Output::Store(command) => pipeline.handle_store(now, command.run(&mut disk)),
                Output::Connect { .. } => wanted.push('c'),
                Output::Abort => wanted.push('a'),
                _ => {}
            }
        }
        wanted
    };
    assert_eq!(wants(&mut pipeline, now), "c");
    pipeline.handle_connected(now);
    assert_eq!(wants(&mut pipeline, now), "");
    pipeline.handle_identity(now, "identity.trouble", "half written".into(), false);
    assert_eq!(wants(&mut pipeline, now), "", "trouble with what is not in force leaves what is");
    pipeline.handle_identity(now, "identity.renewed", "CN=a".into(), true);
    assert_eq!(wants(&mut pipeline, now), "a");
    pipeline.handle_disconnected(now);
    now = second_after(now);
    assert_eq!(wants(&mut pipeline, now), "c");
    // Ten attempts later the pause is long; a renewal while one is under way ends that one.
    for _ in 0..10 {
        pipeline.handle_disconnected(now);
        now = Now { mono: now.mono + Duration::from_secs(600), ..now };
        assert_eq!(wants(&mut pipeline, now), "c");
    }
    pipeline.handle_identity(now, "identity.renewed", "CN=b".into(), true);
    assert_eq!(wants(&mut pipeline, now), "a");
    for _ in 0..10 {
        pipeline.handle_disconnected(now);
        pipeline.hasten(now);
        now = second_after(now);
        assert_eq!(wants(&mut pipeline, now), "c");
    }
}

/// However much waits for the disk at that moment: both kinds of the open batch are sealed, the second though the first
/// took the room.
#[test]
fn a_reload_leaves_nothing_behind() {
    let (mut rng, mut reloads) = (fastrand::Rng::with_seed(1), 0);
    let text = model::Point { ty: PointType::String, raw: true, ..settings::one_point().points[0].clone() };
    let model = Model { points: vec![text], requests: Vec::new(), ..settings::one_point() };
    for messages in 50..120 {
        let (now, mut pipeline) = (START, pipeline(model.clone()));
        let mut say = |pipeline: &mut Pipeline, stamped_by| {
            let text: String = (0..4_000).map(|_| rng.alphanumeric()).collect();
            let sample = Sample { value: Value::Text(text.into()), ..Sample::good(0) };
            let arrival = Arrival { point: PointKey(0), at: now.wall, stamped_by, sample };
            pipeline.handle_message(now, vec![arrival], None);
        };
        say(&mut pipeline, StampedBy::Source);
        (0..messages).for_each(|_| say(&mut pipeline, StampedBy::Agent));
        if pipeline.can_reload() {
            reloads += 1;
            pipeline.reload(now, settings::usual(1), &model).expect("a sound model");
            assert!(pipeline.ledger().holds(pipeline.held()), "after {messages}: {:?}", pipeline.ledger());
        }
    }
    assert!((1..70).contains(&reloads), "{reloads}: the room is never taken, or always");
}
