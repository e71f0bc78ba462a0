//! The MQTT driver against a hostile broker.
