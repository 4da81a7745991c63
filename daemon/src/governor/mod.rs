//! What the device can afford right now, and the model's size that follows from it.

pub mod sensors;
