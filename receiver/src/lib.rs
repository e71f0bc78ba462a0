//! wip
pub mod agent;
pub mod catalog;
pub mod contiguity;
pub mod ingest;
pub mod ledger;
pub mod ranges;
pub mod rows;
pub mod scale;
pub mod store;
pub mod topic;
