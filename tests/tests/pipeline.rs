//! The pipeline alone, told moment by moment what no simulated world is sure to meet: a clock that becomes right without a
//! step (contract rule 17), a batch that is sealed while an older commit is under way (rule 23).

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;
use tributary_core::model::{Model, PointKey};
use tributary_core::pipeline::{Arrival, Now, Output, Pipeline, Receipt};
use tributary_core::record::Head;
use tributary_core::store::{Recovered, StoreCommand};
use tributary_proto::pb::{Batch, TimeQuality};
use tributary_proto::{MAX_INFLATED, inflate};
use tributary_protocols::reading::{Outcome, Poll, Sample, StampedBy};
use tributary_protocols::time::{Mono, Wall};
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
