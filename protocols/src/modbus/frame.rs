//! Modbus TCP frames: a question as bytes, and whether bytes are its answer.
