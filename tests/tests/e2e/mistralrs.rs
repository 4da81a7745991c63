//! The main job on the demo model, through mistral.rs.
