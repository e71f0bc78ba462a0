//! Tells what can be seen from outside: the agent's status now against its status before.
//!
//! It only watches. What the demo does itself (a kill, a restart) the story says.

use tributary::status::{DeviceState, Status};

/// A backlog is worth a word from so many batches on; the newest one or two always wait for their Ack.
const BACKLOG: u64 = 4;

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    before: Option<Status>,
    backlog: bool,
    /// Readings that were said to be lost; this outlives the agent.
    lost: u64,
}

impl Narrator {
    /// The agent is gone: what comes next is another life of it.
    pub(crate) fn forget(&mut self) {
        *self = Self { lost: self.lost, ..Self::default() };
    }

    /// What has changed, one line each.
    pub(crate) fn compare(&mut self, now: &Status) -> Vec<String> {
        let mut lines = Vec::new();
        let more = now.ledger.lost_total().saturating_sub(self.lost);
        if more > 0 {
            self.lost += more;
            lines.push(format!("the agent names {more} readings as lost, with reason and time"));
        }
        let Some(before) = self.before.replace(now.clone()) else {
            return lines;
        };
        for (device, past) in now.devices.iter().zip(&before.devices) {
            let name = &device.name;
            match (past.state, device.state) {
                (past, DeviceState::Silent) if past != DeviceState::Silent => {
                    lines.push(format!("{name} does not answer: every poll of it becomes a reading that says so"));
                }
                (DeviceState::Silent, DeviceState::Ok) => lines.push(format!("{name} answers again")),
                _ => {}
            }
        }
        match (before.uplink.connected, now.uplink.connected) {
            (true, false) => lines.push("no broker: the agent goes on polling, batches wait on its disk".into()),
            (false, true) => lines.push("the agent is connected again".into()),
            _ => {}
        }
        if now.spool.records >= BACKLOG && !now.uplink.connected {
            self.backlog = true;
        }
        if self.backlog && now.uplink.healthy && now.spool.records < BACKLOG {
            self.backlog = false;
            lines.push("the backlog is through: every batch of it is acknowledged".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tributary::status::Device;

    fn status(connected: bool, records: u64, state: DeviceState, lost: u64) -> Status {
        let mut status = Status::default();
        (status.uplink.connected, status.uplink.healthy) = (connected, connected);
        status.spool.records = records;
        status.devices = vec![Device { name: "meter".into(), state, ..Device::default() }];
        status.ledger.lost.insert("agent_down".into(), lost);
        status
    }

    #[test]
    fn each_turn_is_told_once() {
        let mut narrator = Narrator::default();
        let mut told =
            |connected, records, state, lost| narrator.compare(&status(connected, records, state, lost)).len();
        assert_eq!(told(true, 1, DeviceState::Ok, 0), 0, "nothing to compare with");
        assert_eq!(told(true, 2, DeviceState::Silent, 0), 1, "silent");
        assert_eq!(told(true, 2, DeviceState::Silent, 0), 0);
        assert_eq!(told(false, 2, DeviceState::Ok, 0), 2, "answers again, no broker");
        assert_eq!(told(false, 9, DeviceState::Ok, 0), 0);
        assert_eq!(told(true, 9, DeviceState::Ok, 0), 1, "a broker again");
        assert_eq!(told(true, 2, DeviceState::Ok, 0), 1, "the backlog is through");
        narrator.forget();
        let mut told = |lost| narrator.compare(&status(true, 1, DeviceState::Ok, lost)).len();
        assert_eq!((told(7), told(7), told(9)), (1, 0, 1), "losses, by another life of the agent");
    }
}
