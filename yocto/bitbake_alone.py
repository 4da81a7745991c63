"""The real BitBake library on recipes, without OpenEmbedded-Core: what that gives is stood in for by the few variables
and classes below, so that parsing, values, fetching and the recipes' own functions can be looked at anywhere.
"""

import logging
import os
import sys
import types
from pathlib import Path

# Servers that parsing and fetching never ask.
for name in ["hashserv", "hashserv.client", "prserv"]:
    sys.modules[name] = types.ModuleType(name)

import bb  # noqa: E402
import bb.build  # noqa: E402
import bb.data  # noqa: E402
import bb.event  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.parse  # noqa: E402
import bb.siggen  # noqa: E402
import bb.utils  # noqa: E402

LAYER = Path(__file__).resolve().parent / "meta-nestd"

BASE = """
PN = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[0]}"
PV = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[1] or '1.0'}"
BPN = "${@d.getVar('PN').removesuffix('-native')}"
BP = "${BPN}-${PV}"
THISDIR = "${@os.path.dirname(d.getVar('FILE'))}"
TMPDIR = "${TOPDIR}/tmp"
BB_CACHEDIR = "${TOPDIR}/cache"
PERSISTENT_DIR = "${TOPDIR}/cache"
DL_DIR = "${TOPDIR}/downloads"
WORKDIR = "${TMPDIR}/${PN}"
UNPACKDIR = "${WORKDIR}/sources"
S = "${UNPACKDIR}/${BP}"
B = "${S}"
D = "${WORKDIR}/image"
T = "${WORKDIR}/temp"
FILESPATH = ""
BB_GIT_DEFAULT_DESTSUFFIX = "${BP}"
BB_SRCREV_POLICY = "clear"
AUTOREV = "${@bb.fetch2.get_autorev(d)}"
OVERRIDES = "class-target:pn-${PN}"
DISTRO_FEATURES = "systemd"
PACKAGECONFIG_CONFARGS = "${@' '.join(d.getVarFlag('PACKAGECONFIG', f) for f in d.getVar('PACKAGECONFIG').split())}"
MACHINE_ARCH = "somemachine"
PACKAGE_ARCH = "somearch"
PACKAGES = "${PN}-doc ${PACKAGE_BEFORE_PN} ${PN}"
PACKAGE_BEFORE_PN = ""
exec_prefix = "/usr"
bindir = "${exec_prefix}/bin"
datadir = "${exec_prefix}/share"
mandir = "${datadir}/man"
localstatedir = "/var"
nonarch_libdir = "${exec_prefix}/lib"
systemd_system_unitdir = "${nonarch_libdir}/systemd/system"
export PATH
"""

CLASSES = {
    "base": "addtask do_fetch\naddtask do_unpack after do_fetch\naddtask do_configure after do_unpack\n"
    "addtask do_compile after do_configure\naddtask do_install after do_compile\n"
    'do_fetch() {\n:\n}\ndo_unpack() {\n:\n}\ndo_configure() {\n:\n}\ndo_compile() {\n:\n}\ndo_install() {\n:\n}\n',
    "cargo": 'CARGO_HOME = "${UNPACKDIR}/cargo_home"\nCARGO_VENDORING_DIRECTORY = "${CARGO_HOME}/bitbake"\n'
    'CARGO_TARGET_SUBDIR = "release"\nCARGO_BUILD_FLAGS = "--frozen"\nB = "${WORKDIR}/build"\n',
    "bash-completion": 'PACKAGE_BEFORE_PN += "${PN}-bash-completion"\n',
    "core-image": "",
    "features_check": "",
    "native": 'OVERRIDES = "class-native:pn-${PN}"\n',
    "nativesdk": 'OVERRIDES = "class-nativesdk:pn-${PN}"\n',
    "packagegroup": 'PACKAGES = "${PN}"\n',
    "systemd": "",
    "useradd": "",
}


class Messages(logging.Handler):
    """What BitBake said."""

    def __init__(self):
        super().__init__(logging.NOTSET)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


MESSAGES = Messages()
logger = logging.getLogger("BitBake")
logger.propagate = False
logger.handlers = [MESSAGES]


class Alone:
    """A layer and its configuration, in a folder of their own."""

    def __init__(self, folder):
        folder = Path(folder)
        self.folder = folder
        core = folder / "core"
        (core / "conf").mkdir(parents=True)
        (core / "classes").mkdir()
        (core / "conf/bitbake.conf").write_text(BASE)
        for name, text in CLASSES.items():
            (core / f"classes/{name}.bbclass").write_text(text)
        data = bb.data.init()
        data.setVar("TOPDIR", str(folder))
        data.setVar("BBPATH", f"{core}")
        data.setVar("PATH", os.environ["PATH"])
        data.setVar("BB_SIGNATURE_HANDLER", "noop")
        # Fetches come from this machine.
        data.setVar("BB_NO_NETWORK", "1")
        data = bb.parse.handle("conf/bitbake.conf", data, True)
        data.setVar("LAYERDIR", str(LAYER))
        data = bb.parse.handle(str(LAYER / "conf/layer.conf"), data, True)
        data.expandVarref("LAYERDIR")
        data.delVar("LAYERDIR")
        bb.parse.siggen = bb.siggen.init(data)
        bb.parse.init_parser(data)
        bb.fetch2.fetcher_init(data)
        self.data = data

    def recipe(self, path, **values):
        """A recipe's data, with variables as a configuration would set them."""
        data = self.data.createCopy()
        for name, value in values.items():
            data.setVar(name, value)
        data.setVar("__bbclasstype", "recipe")
        bb.parse.handle("classes/base.bbclass", data, True)
        data = bb.parse.handle(str(LAYER / path), data)[""]
        if not self.skipped(data) and data.getVar("SRC_URI"):
            # As for a task's hash, which is when BitBake finds out what AUTOREV is.
            bb.fetch2.get_hashvalue(data)
        return data

    @staticmethod
    def skipped(data):
        """Why a recipe is skipped; None where it is not."""
        return data.getVar("__SKIPPED", False)

    @staticmethod
    def failure(run):
        """What BitBake says where `run` ends in an error of a recipe; None where it does not."""
        MESSAGES.said.clear()
        try:
            run()
        except (bb.BBHandledException, bb.process.ExecutionError):
            return "\n".join(MESSAGES.said)
        return None

    @staticmethod
    def unpack(data):
        """Fetches and unpacks what a recipe names, as do_fetch and do_unpack do."""
        fetcher = bb.fetch2.Fetch(data.getVar("SRC_URI").split(), data)
        fetcher.download()
        target = data.getVar("UNPACKDIR")
        bb.utils.mkdirhier(target)
        fetcher.unpack(target)

    @staticmethod
    def run(function, data):
        """Runs one of a recipe's functions, with an empty folder to install into."""
        for folder in ["D", "T", "B"]:
            bb.utils.mkdirhier(data.getVar(folder))
        bb.build.exec_func(function, data, dirs=[data.getVar("B")])
