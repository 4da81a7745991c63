#!/usr/bin/env python3
"""Parses the layer with the real BitBake library, and checks what comes out. `yocto/check.sh` calls it.

  NESTCTL=FILE    a nestctl that was built: checks models as the recipes do, else a test of them is skipped
"""

import contextlib
import hashlib
import io
import os
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

import jsonschema
import yaml
from bitbake_alone import LAYER, MESSAGES, Alone, bb
from kas import configschema

ROOT = LAYER.parent.parent
NESTD = "recipes-nestd/nestd/nestd_0.1.0.bb"
NESTCTL = "recipes-nestd/nestd/nestctl_0.1.0.bb"
PROFILE = "recipes-nestd/nestd/nestd-profile_0.1.0.bb"
DEMO = "recipes-nestd/models/nestd-model-demo_0.1.0.bb"
OWN = "recipes-nestd/models/nestd-model-own_1.0.bb"
PROFILES = ["glasses", "headset", "handheld", "plugged"]
DEMO_FILE = ROOT / "models/demo/nestd-demo-Q8_0.gguf"


def inspected(*mib, kv_mib=52):
    """What `nestctl --json model inspect` says of a model whose sizes need so much, as far as the class reads it."""
    sizes = [{"name": f"size{n}", "need_bytes": {"total": n << 20, "kv": kv_mib << 20}} for n in mib]
    return {"sizes": sizes}


class Layer(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="nestd-layer-")
        self.addCleanup(self.folder.cleanup)
        # BitBake changes into folders that go.
        self.addCleanup(os.chdir, os.getcwd())
        self.alone = Alone(self.folder.name)

    def recipe(self, path, **values):
        return self.alone.recipe(path, **values)

    def installed(self, path, **values):
        """The folder into which a recipe installs from the checkout."""
        data = self.recipe(path, **values)
        data.setVar("S", str(ROOT))
        self.alone.run("do_install", data)
        return Path(data.getVar("D"))

    def test_layer_conf(self):
        value = self.alone.data.getVar
        self.assertEqual(value("LAYERSERIES_COMPAT_nestd").split(), ["whinlatter", "wrynose"])
        self.assertEqual(value("LAYERDEPENDS_nestd"), "core")
        found = {str(file) for pattern in value("BBFILES").split() for file in Path("/").glob(pattern.lstrip("/"))}
        self.assertEqual(found, {str(file) for file in LAYER.rglob("*.bb")})

    def test_every_recipe_says_what_it_is(self):
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        for file in sorted(LAYER.rglob("*.bb")):
            with self.subTest(file.name):
                data = self.recipe(file, NESTD_MODEL_URI="file:///m.gguf", NESTD_MODEL_SHA256="0")
                self.assertIsNone(self.alone.skipped(data))
                for variable in ["SUMMARY", "DESCRIPTION"]:
                    self.assertTrue(data.getVar(variable))
                if "nestd-source.inc" in file.read_text():
                    self.assertEqual(data.getVar("PV"), f"{version}+git")
                    self.assertTrue(data.getVar("LICENSE"))
                for variable in data.keys():
                    self.assertNotIn("${", data.getVar(variable) if variable.startswith("NESTD_") else "", variable)

    def test_licences_follow_what_is_built(self):
        plain = self.recipe(NESTD)
        self.assertEqual(plain.getVar("PACKAGECONFIG"), "")
        self.assertNotIn("MPL-2.0", plain.getVar("LICENSE"))
        full = self.recipe(NESTD, PACKAGECONFIG="tcp mistralrs")
        self.assertEqual(full.getVar("PACKAGECONFIG_CONFARGS"), "--features tcp --features mistralrs")
        self.assertIn("MPL-2.0", full.getVar("LICENSE"))
        for data in [plain, full, self.recipe(NESTCTL)]:
            for word in ["OR", "AND", "WITH", "/"]:
                self.assertNotIn(word, data.getVar("LICENSE").split())
            self.assertRegex(data.getVar("LICENSE"), r"\A\(Apache-2.0 \| MIT\) &")
            self.assertEqual(data.getVar("LICENSE").count("("), data.getVar("LICENSE").count(")"))
        files = full.getVar("LIC_FILES_CHKSUM").split()
        self.assertGreater(len(files), len(plain.getVar("LIC_FILES_CHKSUM").split()))
        for name in ["LICENSE-APACHE", "LICENSE-MIT"]:
            md5 = hashlib.md5((ROOT / name).read_bytes()).hexdigest()
            self.assertIn(f"file://{name};md5={md5}", files)

    def test_crates_are_those_of_the_lock_file_and_can_be_fetched(self):
        lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
        wanted = {f"{p['name']}-{p['version']}": p["checksum"] for p in lock["package"] if "source" in p}
        mirror = self.mirror()
        for path in [NESTD, NESTCTL]:
            data = self.recipe(path, PREMIRRORS=f"https://.*/.* file://{mirror}/")
            urls = [url for url in data.getVar("SRC_URI").split() if url.startswith("crate://")]
            fetcher = bb.fetch2.Fetch(urls, data)
            crates = [fetcher.ud[url] for url in urls]
            expected = {ud.parm["name"]: ud.sha256_expected for ud in crates}
            self.assertEqual(expected, wanted)
        # BitBake compares the sums; what is not in cargo's cache would need the network.
        fetcher.download()
        self.assertEqual(len(list(Path(data.getVar("DL_DIR")).glob("*.crate"))), len(wanted))
        data.setVarFlag("SRC_URI", f"{crates[0].parm['name']}.sha256sum", "0" * 64)
        data.setVar("DL_DIR", f"{self.folder.name}/other")
        one = bb.fetch2.Fetch(urls[:1], data, cache=False)
        with self.assertRaises(bb.fetch2.BBFetchException):
            one.download()
        self.assertIn("Checksum mismatch", "".join(MESSAGES.said))

    def test_the_kas_files_are_valid_and_pin_everything(self):
        for file in sorted((LAYER / "kas").glob("*.yml")):
            with self.subTest(file.name):
                config = yaml.safe_load(file.read_text())
                jsonschema.validate(config, configschema.CONFIGSCHEMA)
                for include in config["header"].get("includes", []):
                    self.assertTrue((ROOT / include).is_file(), include)
                for name, repo in config["repos"].items():
                    if name == "nestd":
                        self.assertTrue(all((ROOT / layer / "conf/layer.conf").is_file() for layer in repo["layers"]))
                    else:
                        self.assertRegex(repo["commit"], r"\A[0-9a-f]{40}\Z")

    def mirror(self):
        """A folder of links to cargo's cache: BitBake renames what has the wrong checksum."""
        home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
        mirror = Path(self.folder.name, "mirror")
        mirror.mkdir()
        for crate in (home / "registry/cache").glob("*/*.crate"):
            with contextlib.suppress(FileExistsError):
                (mirror / crate.name).symlink_to(crate)
        return mirror

    def test_the_source_is_this_checkout_at_its_commit(self):
        data = self.recipe(DEMO)
        self.alone.unpack(data)
        source = Path(data.getVar("S"))
        head = subprocess.check_output(["git", "-C", ROOT, "show", "HEAD:Cargo.lock"])
        self.assertEqual((source / "Cargo.lock").read_bytes(), head)
        self.assertTrue(Path(data.getVar("NESTD_MODEL_FILE")).is_file())
        self.assertTrue(Path(data.getVar("NESTD_MODEL_SIZES")).is_file())
        away = self.recipe(DEMO, NESTD_SRCTREE=self.folder.name)
        self.assertIn("set NESTD_SRC_URI", self.alone.skipped(away))
        pinned = self.recipe(
            NESTD, NESTD_SRC_URI="git://example.org/nestd;protocol=https;branch=main", NESTD_SRCREV="0" * 40
        )
        self.assertTrue(pinned.getVar("SRC_URI").startswith("git://example.org/nestd;"))
        self.assertEqual(pinned.getVar("SRCREV"), "0" * 40)

    def test_the_daemon_is_installed_with_what_it_needs(self):
        data = self.recipe(NESTD)
        binary = Path(data.getVar("B"), "target/release/nestd")
        binary.parent.mkdir(parents=True)
        binary.write_text("no program\n")
        image = self.installed(NESTD)
        units = image / "usr/lib/systemd/system"
        self.assertEqual({file.name for file in units.iterdir()}, set(data.getVar("SYSTEMD_SERVICE:nestd").split()))
        for file in [
            "usr/bin/nestd",
            "usr/share/man/man1/nestd.1",
            "usr/lib/sysusers.d/nestd.conf",
            "usr/lib/tmpfiles.d/nestd.conf",
            "usr/share/dbus-1/system.d/org.nestd.Nestd1.conf",
            "usr/share/dbus-1/system-services/org.nestd.Nestd1.service",
        ]:
            self.assertTrue((image / file).is_file(), file)
        self.assertFalse((image / "usr/share/polkit-1").exists())
        model = tomllib.loads((image / "usr/lib/nestd/nestd.toml.d/20-model.toml").read_text())
        self.assertEqual(model, {"model": {"dir": "/usr/share/nestd/models"}})
        image = self.installed(NESTD, DISTRO_FEATURES="systemd polkit")
        for file in ["actions/org.nestd.policy", "rules.d/50-nestd.rules"]:
            self.assertTrue((image / "usr/share/polkit-1" / file).is_file(), file)
        # Users are made as sysusers.d says it.
        for line in (ROOT / "systemd/sysusers.conf").read_text().splitlines():
            kind, _, rest = line.partition(" ")
            if kind in ["u", "g"]:
                param = {"u": "USERADD_PARAM:nestd", "g": "GROUPADD_PARAM:nestd"}[kind]
                self.assertEqual(data.getVar(param).split()[-1], rest.split()[0])

    def test_each_profile_has_its_memory_and_its_settings(self):
        for name in PROFILES:
            with self.subTest(name):
                values = {"NESTD_PROFILE": name, "NESTD_MACHINE_MEMORY_MIB": "8000"}
                data = self.recipe(PROFILE, **values)
                self.assertEqual(data.getVar("PACKAGE_ARCH"), "somemachine")
                image = self.installed(PROFILE, **values)
                unit = (image / "usr/lib/systemd/system/nestd.service.d/10-profile.conf").read_text()
                high = {"plugged": "75%"}.get(name, data.getVar("NESTD_MEMORY_HIGH_MIB") + "M")
                self.assertIn(f"MemoryHigh={high}\n", unit)
                # As the project's own file for the profile, over the daemon's defaults.
                settings = tomllib.loads((image / "usr/lib/nestd/nestd.toml.d/10-profile.toml").read_text())
                wanted = tomllib.loads((ROOT / "systemd/nestd.toml").read_text())
                for table, keys in tomllib.loads((ROOT / f"systemd/profiles/{name}.toml").read_text()).items():
                    wanted[table] |= keys
                for table, keys in settings.items():
                    self.assertEqual(keys, {key: wanted[table][key] for key in keys})
        plugged = self.recipe(PROFILE, NESTD_PROFILE="plugged", NESTD_MACHINE_MEMORY_MIB="8000")
        self.assertEqual(plugged.getVar("NESTD_MEMORY_HIGH_MIB"), "6000")
        self.assertEqual(self.recipe(PROFILE, NESTD_PROFILE="plugged").getVar("NESTD_MEMORY_HIGH_MIB"), "")

    def test_a_wrong_setting_is_told(self):
        for variable, value, message in [
            ("NESTD_PROFILE", "watch", 'NESTD_PROFILE is "watch": it has to be one of glasses, headset, handheld, plugged'),
            ("NESTD_CONTEXT_TOKENS", "4k", 'NESTD_CONTEXT_TOKENS is "4k": it has to be a number'),
            ("NESTD_MEMORY_HIGH_MIB", "2G", 'NESTD_MEMORY_HIGH_MIB is "2G": it has to be a number'),
            ("NESTD_KV", "q4", 'NESTD_KV is "q4": it has to be f16 or q8_0'),
        ]:
            for path in [PROFILE, DEMO]:
                told = self.alone.failure(lambda: self.recipe(path, **{variable: value}))
                self.assertIsNotNone(told, f"{variable} passed")
                self.assertIn(message, told)

    def test_a_model_has_to_fit_the_profile(self):
        def told(sizes, **values):
            data = self.recipe(DEMO, **values)
            check = bb.utils.get_context()["nestd_check_model"]
            return self.alone.failure(lambda: check(data, sizes))

        # E2B and E4B in Q4_0 with 4096 tokens.
        e2b, e4b = inspected(1634), inspected(2758, 1877)
        self.assertIsNone(told(e2b, NESTD_PROFILE="glasses"))
        refused = told(e4b, NESTD_PROFILE="glasses")
        self.assertIn("demo does not fit the profile glasses: its smallest size, size1877, needs", refused)
        self.assertIn("MemoryHigh is 1920 MiB", refused)
        self.assertIsNone(told(e4b, NESTD_PROFILE="headset"))
        self.assertIsNone(told(e4b, NESTD_PROFILE="handheld"))
        # The daemon's defaults are too much for glasses; each of these is enough.
        four = {"NESTD_PROFILE": "glasses", "NESTD_PARALLEL_REQUESTS": "4"}
        self.assertIsNotNone(told(e2b, **four))
        self.assertIsNone(told(inspected(1600, kv_mib=26), **four))
        self.assertIsNone(told(e4b, NESTD_PROFILE="plugged", NESTD_MACHINE_MEMORY_MIB="8000"))
        self.assertIsNotNone(told(e4b, NESTD_PROFILE="plugged", NESTD_MACHINE_MEMORY_MIB="2000"))
        MESSAGES.said.clear()
        self.assertIsNone(told(e4b, NESTD_PROFILE="plugged"))
        self.assertIn("set NESTD_MACHINE_MEMORY_MIB", "".join(MESSAGES.said))

    def test_a_model_has_its_checksum(self):
        data = self.recipe(DEMO)
        self.assertEqual(data.getVar("NESTD_MODEL_SHA256"), hashlib.sha256(DEMO_FILE.read_bytes()).hexdigest())
        self.assertIn("set NESTD_MODEL_URI", self.alone.skipped(self.recipe(OWN)))
        model = Path(self.folder.name, "mine.gguf")
        model.write_bytes(b"no model")
        data = self.own(model, "0" * 64)
        # The fetcher compares no file of this machine, the class does.
        told = self.alone.failure(lambda: self.alone.run("do_compile", data))
        self.assertIn(f'and NESTD_MODEL_SHA256 is "{"0" * 64}"', told)
        for uri in ["https://example.org/a/m.gguf", "https://example.org/m.gguf?x=1;downloadfilename=m.gguf"]:
            web = self.recipe(OWN, NESTD_MODEL_URI=uri, NESTD_MODEL_SHA256="0")
            self.assertEqual(web.getVar("NESTD_MODEL_FILE"), f"{web.getVar('UNPACKDIR')}/m.gguf")

    def own(self, file, sha256, **values):
        """The recipe of one's own model, unpacked and configured."""
        data = self.recipe(OWN, NESTD_MODEL_URI=f"file://{file}", NESTD_MODEL_SHA256=sha256, **values)
        self.alone.unpack(data)
        self.alone.run("do_configure", data)
        return data

    @unittest.skipUnless(os.environ.get("NESTCTL"), "no nestctl was built")
    def test_a_model_is_checked_by_nestctl_and_installed(self):
        tools = Path(self.folder.name, "tools")
        tools.mkdir()
        (tools / "nestctl").symlink_to(Path(os.environ["NESTCTL"]).resolve())
        path = os.environ["PATH"]
        self.addCleanup(os.environ.update, PATH=path)
        os.environ["PATH"] = f"{tools}:{path}"
        sha256 = hashlib.sha256(DEMO_FILE.read_bytes()).hexdigest()
        sizes = f"file://{ROOT}/models/demo/hf/sizes.csv"
        data = self.own(DEMO_FILE, sha256, NESTD_MODEL_SIZES_URI=sizes, NESTD_PROFILE="glasses")
        self.assertIsNone(self.alone.failure(lambda: self.alone.run("do_compile", data)))
        self.alone.run("do_install", data)
        models = Path(data.getVar("D"), "usr/share/nestd/models")
        self.assertEqual({file.name for file in models.iterdir()}, {"own.gguf", "own.sizes.csv"})
        self.assertEqual((models / "own.gguf").read_bytes(), DEMO_FILE.read_bytes())
        data = self.own(DEMO_FILE, sha256, NESTD_MODEL_SIZES_URI=sizes, NESTD_MODEL_NESTED="1")
        # A second run of the task finds what the first one left.
        for _ in range(2):
            self.assertIsNone(self.alone.failure(lambda: self.alone.run("do_compile", data)))
        self.alone.run("do_install", data)
        models = Path(data.getVar("D"), "usr/share/nestd/models")
        self.assertEqual({file.name for file in models.iterdir()}, {"own.gguf", "own.sizes.csv"})
        self.assertIn(b"ffn_down_rest", (models / "own.gguf").read_bytes())
        nested = Path(self.folder.name, "nested.gguf")
        nested.write_bytes((models / "own.gguf").read_bytes())
        twice = self.own(nested, hashlib.sha256(nested.read_bytes()).hexdigest(), NESTD_MODEL_NESTED="1")
        told = self.alone.failure(lambda: self.alone.run("do_compile", twice))
        self.assertRegex(told, "nestctl model nest: .*nested already")
        small = self.own(DEMO_FILE, sha256, NESTD_MEMORY_HIGH_MIB="100")
        told = self.alone.failure(lambda: self.alone.run("do_compile", small))
        self.assertIn("own does not fit the profile headset", told)
        broken = Path(self.folder.name, "broken.gguf")
        broken.write_bytes(DEMO_FILE.read_bytes()[:-9000])
        data = self.own(broken, hashlib.sha256(broken.read_bytes()).hexdigest())
        told = self.alone.failure(lambda: self.alone.run("do_compile", data))
        self.assertRegex(told, "nestctl model inspect: .*past the end")


if __name__ == "__main__":
    # BitBake writes to standard output what a function prints.
    with contextlib.redirect_stdout(io.StringIO()):
        unittest.main(verbosity=2)
