//! The data of an answer → one sample for each point of its request.
