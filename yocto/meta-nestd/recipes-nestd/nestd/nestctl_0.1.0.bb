SUMMARY = "Command-line client of nestd"
DESCRIPTION = "Asks the daemon, shows and controls it; inspects and measures models without it."
SECTION = "console/utils"

require nestd-source.inc
# cargo resolves the whole workspace before it picks what to build, so that all of its crates have to be there.
require nestd-crates.inc
require nestd-licenses.inc

inherit bash-completion cargo

LICENSE = "${NESTD_LICENSE} & ${NESTCTL_CRATE_LICENSES}"
LIC_FILES_CHKSUM = "${NESTD_LICENSE_FILES} ${NESTCTL_CRATE_LICENSE_FILES}"

# It writes its own completions and manual, so the one that runs here does.
DEPENDS:append:class-target = " nestctl-native"

CARGO_BUILD_FLAGS += "--package nestctl"

# The class takes each recipe for a crate of the registry.
SPDX_PACKAGE_URLS:remove = "pkg:cargo/${BPN}@${PV}"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/nestctl ${D}${bindir}/nestctl
}

do_install:append:class-target() {
    install -d ${D}${mandir}/man1 ${D}${datadir}/bash-completion/completions \
        ${D}${datadir}/zsh/site-functions ${D}${datadir}/fish/vendor_completions.d
    nestctl man --dir ${D}${mandir}/man1
    nestctl completions bash >${D}${datadir}/bash-completion/completions/nestctl
    nestctl completions zsh >${D}${datadir}/zsh/site-functions/_nestctl
    nestctl completions fish >${D}${datadir}/fish/vendor_completions.d/nestctl.fish
}

PACKAGE_BEFORE_PN += "${PN}-zsh-completion ${PN}-fish-completion"
FILES:${PN}-zsh-completion += "${datadir}/zsh"
FILES:${PN}-fish-completion += "${datadir}/fish"

BBCLASSEXTEND = "native nativesdk"
