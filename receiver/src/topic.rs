//! Topics: `{prefix}/{site}/{agent}/…` (contract, Topics).
//!
//! The topic, guarded by the broker's ACL, is what says whose a message is (contract rule 20): an agent id inside a
//! message is for transports that have no topics, and is not believed here. Levels outside `[A-Za-z0-9_-]{1,64}` are
//! refused: other brokers map dots, spaces, `+ # $ /` to something else.

use std::fmt;

/// Whether `level` may name a site or an agent: `[A-Za-z0-9_-]{1,64}`.
#[must_use]
pub fn is_level(level: &str) -> bool {
    (1..=64).contains(&level.len()) && level.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Which agent of which site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentKey {
    /// The site's topic level.
    pub site: String,
    /// The agent's topic level.
    pub agent: String,
}

impl AgentKey {
    /// The key, if both are levels ([`is_level`]).
    #[must_use]
    pub fn new(site: &str, agent: &str) -> Option<Self> {
        (is_level(site) && is_level(agent)).then(|| Self { site: site.to_owned(), agent: agent.to_owned() })
    }

    /// Where this agent listens for its Acks.
    #[must_use]
    pub fn ack_topic(&self, prefix: &str) -> String {
        format!("{prefix}/{}/{}/ack", self.site, self.agent)
    }
}

impl fmt::Display for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.agent)
    }
}

/// What a message of an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An `Envelope`; the lane is in it.
    Data,
    /// A `Catalog`.
    Catalog,
    /// An `AgentStatus`.
    Status,
}

/// Whose message it is and of which kind; `None` for a topic that no agent may use.
#[must_use]
pub fn parse(prefix: &str, topic: &str) -> Option<(AgentKey, Kind)> {
    let levels = topic.strip_prefix(prefix)?.strip_prefix('/')?;
    let mut levels = levels.split('/');
    let key = AgentKey::new(levels.next()?, levels.next()?)?;
    let kind = match (levels.next()?, levels.next(), levels.next()) {
        ("data", Some(_lane), None) => Kind::Data,
        ("cat", None, None) => Kind::Catalog,
        ("stat", None, None) => Kind::Status,
        _ => return None,
    };
    Some((key, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_and_strangers_turned_away() {
        let (key, kind) = parse("edge/v1", "edge/v1/plant-1/gw_017/data/b").expect("an agent's topic");
        assert_eq!((key.to_string().as_str(), kind), ("plant-1/gw_017", Kind::Data));
        assert_eq!(key.ack_topic("edge/v1"), "edge/v1/plant-1/gw_017/ack");
        let kind = |topic| parse("edge/v1", topic).map(|(_, kind)| kind);
        assert_eq!(kind("edge/v1/s/a/cat"), Some(Kind::Catalog));
        assert_eq!(kind("edge/v1/s/a/stat"), Some(Kind::Status));
        let long = format!("edge/v1/s/{}/stat", "a".repeat(65));
        for topic in [
            "edge/v1/s/a/ack",
            "edge/v1/s/a/data",
            "edge/v1/s/a/data/l/x",
            "edge/v1/s.x/a/cat",
            "edge/v1//a/cat",
            "edge/v1x/s/a/cat",
            &long,
        ] {
            assert_eq!(kind(topic), None, "{topic}");
        }
    }
}
