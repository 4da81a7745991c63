//! Weights are in memory before the size that needs them comes: the real daemon, a device of files, and a
//! model's file on the disk.

use nestd_client::{ask, v1::Stopping};
use nestd_elastic::model::Model;
use nestd_elastic::sizes::{self, Size};
use nestd_elastic::synth::{self, Quant, Shape};
use nestd_tests::{Builder, Device, collect, finished};

use crate::governor::{at, told};
use crate::watched::Watched;

/// Three layers that the small size skips are 50 MB side by side, far more than a disk is asked for at
/// once.
const SHAPE: Shape = Shape { layers: 8, shared_kv: 3, width: 20480, ..Shape::SMALL };

#[tokio::test]
async fn weights_of_a_planned_size_are_read_during_the_dwell() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("model.gguf");
    synth::write(&path, &SHAPE, Quant::Q8_0, 1, &mut |_, _| {}).unwrap();
    let size = |name: &str, effective_params_b, widths, skipped| {
        let name = name.to_owned();
        Size { name, effective_params_b, widths, skipped }
    };
    let small = size("small", 0.1, vec![256; 5], vec![5, 6, 7]);
    let table = sizes::write(&[size("large", 0.4, vec![20480; 8], vec![]), small]);
    std::fs::write(path.with_extension("sizes.csv"), table).unwrap();
    let model = Model::open(&path).unwrap();
    let needed = model.needed(&model.full());
    drop(model);

    let device = Device::on_battery(20);
    let daemon = device
        .governs(Builder::default())
        .set("model.dir", &format!("'{}'", folder.path().display()))
        .set("model.name", "'model'")
        .set("governor.dwell_s", "3600.0")
        .start();
    let client = daemon.grpc().await;
    at(&client, "small", "battery").await;
    // What was written just now is still in memory.
    let file = Watched::open(&path);
    file.drop_pages();
    let (cached, all) = file.cached(&needed);
    assert!(cached < all / 2, "{} keeps {cached} of {all} bytes", folder.path().display());

    device.charge("90");
    file.wait(&needed);
    let report = told(&client, |report| report.reason.contains("waits out the dwell")).await;
    assert_eq!(report.active_size, "small", "{}", report.reason);

    // What was read for a plan that is given up is given back, and read again for the next.
    device.charge("20");
    file.until(&needed, |cached, all| cached < all / 2);
    device.charge("90");
    file.wait(&needed);

    daemon.change("governor.dwell_s", "0.5");
    at(&client, "large", "plenty").await;
    let mut request = ask("Hello");
    request.stopping = Some(Stopping { max_tokens: 4, ..Stopping::default() });
    let events = collect(client.generate(request).await.unwrap()).await.unwrap();
    assert_eq!(finished(&events).sizes, ["large"]);
}
