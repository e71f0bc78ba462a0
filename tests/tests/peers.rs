//! What the other tests stand on: that the real peers can be started, killed and started again, and what they then do.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tributary_tests::broker::Mosquitto;
use tributary_tests::evidence::Fault;
use tributary_tests::postgres::Postgres;
use tributary_tests::process::eventually;

/// Why a PUBACK frees nothing (contract rule 4): Debian's mosquitto forgets what it has PUBACKed.
#[tokio::test]
async fn live_mosquitto_forgets_what_it_acknowledged() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let mut broker = Mosquitto::start(folder.path()).await?;
    let subscribed = |port| {
        let mut options = MqttOptions::new("subscriber", "127.0.0.1", port);
        options.set_clean_session(false);
        AsyncClient::new(options, 10)
    };
    // A persistent session that is away, so the broker must keep the message for it.
    let (client, mut events) = subscribed(broker.port());
    client.subscribe("topic", QoS::AtLeastOnce).await?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
    drop((client, events));
    let (client, mut events) = AsyncClient::new(MqttOptions::new("publisher", "127.0.0.1", broker.port()), 10);
    client.publish("topic", QoS::AtLeastOnce, false, "acknowledged").await?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::PubAck(_))) {}
    drop((client, events));

    broker.kill();
    broker.restart().await?;
    let (_client, mut events) = subscribed(broker.port());
    let Event::Incoming(Packet::ConnAck(connack)) = events.poll().await? else { return Err("no CONNACK".into()) };
    assert!(!connack.session_present, "this mosquitto keeps sessions over SIGKILL: the fault it stands for is gone");
    Ok(())
}

#[tokio::test]
async fn live_postgresql_keeps_what_it_committed() -> Result<(), Fault> {
    let mut server = Postgres::start().await?;
    let client = server.connect().await?;
    client.batch_execute("CREATE TABLE kept (value bigint); INSERT INTO kept VALUES (7)").await?;
    server.kill();
    // Its children end when they see that the postmaster is gone.
    let patience = Duration::from_secs(60);
    eventually("the server's children to end", patience, async || client.query("SELECT 1", &[]).await.err()).await;
    server.restart().await?;
    let rows = server.connect().await?.query("SELECT value FROM kept", &[]).await?;
    assert_eq!(rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), [7]);
    Ok(())
}

/// A cell's broker keeps messages for a client that is away, as long as the broker itself lives.
#[tokio::test]
async fn live_mosquitto_keeps_messages_for_a_session_that_is_away() -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let broker = Mosquitto::start(folder.path()).await?;
    let subscribed = || {
        let mut options = MqttOptions::new("subscriber", "127.0.0.1", broker.port());
        options.set_clean_session(false);
        AsyncClient::new(options, 10)
    };
    let (client, mut events) = subscribed();
    client.subscribe("topic", QoS::AtLeastOnce).await?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
    drop((client, events));
    let (client, mut events) = AsyncClient::new(MqttOptions::new("publisher", "127.0.0.1", broker.port()), 10);
    client.publish("topic", QoS::AtLeastOnce, false, "kept").await?;
    while !matches!(events.poll().await?, Event::Incoming(Packet::PubAck(_))) {}

    let (_client, mut events) = subscribed();
    let message = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Event::Incoming(Packet::Publish(message)) = events.poll().await? {
                return Ok::<_, Fault>(message);
            }
        }
    })
    .await??;
    assert_eq!(message.payload, "kept");
    Ok(())
}
