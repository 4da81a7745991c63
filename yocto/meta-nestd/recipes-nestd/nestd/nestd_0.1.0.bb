SUMMARY = "Daemon that hosts Gemma 3n for the programs of a device"
DESCRIPTION = "Serves a language model over D-Bus and gRPC; its size follows battery, memory and temperature."
SECTION = "base"

require nestd-source.inc
require nestd-crates.inc
require nestd-licenses.inc

inherit cargo features_check systemd useradd

LICENSE = "${NESTD_LICENSE} & ${NESTD_CRATE_LICENSES} \
    ${@bb.utils.contains('PACKAGECONFIG', 'tcp', '& ${NESTD_TCP_CRATE_LICENSES}', '', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'mistralrs', '& ${NESTD_MISTRALRS_CRATE_LICENSES}', '', d)} \
"
LIC_FILES_CHKSUM = "${NESTD_LICENSE_FILES} ${NESTD_CRATE_LICENSE_FILES} \
    ${@bb.utils.contains('PACKAGECONFIG', 'tcp', '${NESTD_TCP_CRATE_LICENSE_FILES}', '', d)} \
    ${@bb.utils.contains('PACKAGECONFIG', 'mistralrs', '${NESTD_MISTRALRS_CRATE_LICENSE_FILES}', '', d)} \
"

REQUIRED_DISTRO_FEATURES:class-target = "systemd"

# The engine elastic (GGUF) is always there. mistralrs loads Hugging Face folders, at the price of 370 more crates;
# tcp serves gRPC on TCP with mutual TLS.
PACKAGECONFIG ??= ""
PACKAGECONFIG[mistralrs] = "--features mistralrs"
PACKAGECONFIG[tcp] = "--features tcp"

CARGO_BUILD_FLAGS += "--package nestd --no-default-features"

# Smaller; not with mistral.rs, which takes too much memory to link that way. From wrynose on: whinlatter's class has no
# such variable, and builds for release.
CARGO_PROFILE:class-target = "${@oe.utils.vartrue('DEBUG_BUILD', 'dev', \
    bb.utils.contains('PACKAGECONFIG', 'mistralrs', 'release', 'device', d), d)}"

# The class takes each recipe for a crate of the registry.
SPDX_PACKAGE_URLS:remove = "pkg:cargo/${BPN}@${PV}"

SYSTEMD_SERVICE:${PN} = "nestd.service nestd.socket nestd-metrics.socket"

# As in systemd/sysusers.conf.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system nestd-control"
USERADD_PARAM:${PN} = "--system --user-group --no-create-home --home-dir ${localstatedir}/lib/nestd \
    --shell /sbin/nologin nestd"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/nestd ${D}${bindir}/nestd
}

do_install:append:class-target() {
    install -d ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/nestd.service ${S}/systemd/nestd.socket ${S}/systemd/nestd-metrics.socket \
        ${D}${systemd_system_unitdir}/
    install -D -m 0644 ${S}/docs/nestd.1 ${D}${mandir}/man1/nestd.1
    install -D -m 0644 ${S}/systemd/sysusers.conf ${D}${nonarch_libdir}/sysusers.d/nestd.conf
    install -D -m 0644 ${S}/systemd/tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/nestd.conf
    install -D -m 0644 ${S}/systemd/org.nestd.Nestd1.conf ${D}${datadir}/dbus-1/system.d/org.nestd.Nestd1.conf
    install -D -m 0644 ${S}/systemd/org.nestd.Nestd1.service \
        ${D}${datadir}/dbus-1/system-services/org.nestd.Nestd1.service
    if ${@bb.utils.contains('DISTRO_FEATURES', 'polkit', 'true', 'false', d)}; then
        install -D -m 0644 ${S}/systemd/org.nestd.policy ${D}${datadir}/polkit-1/actions/org.nestd.policy
        install -D -m 0644 ${S}/systemd/50-nestd.rules ${D}${datadir}/polkit-1/rules.d/50-nestd.rules
    fi
    install -d ${D}${nonarch_libdir}/nestd/nestd.toml.d
    printf '%s\n' '# Models come in packages.' '[model]' 'dir = "${datadir}/nestd/models"' \
        >${D}${nonarch_libdir}/nestd/nestd.toml.d/20-model.toml
}

# What has the daemon look for packaged models; packages of models bring it.
PACKAGE_BEFORE_PN += "nestd-model-dir"
FILES:nestd-model-dir += "${nonarch_libdir}/nestd/nestd.toml.d/20-model.toml"
FILES:${PN} += "\
    ${datadir}/dbus-1 \
    ${datadir}/polkit-1 \
    ${nonarch_libdir}/sysusers.d \
    ${nonarch_libdir}/tmpfiles.d \
"
RDEPENDS:${PN}:append:class-target = " ${@bb.utils.filter('DISTRO_FEATURES', 'polkit', d)}"

# nestd-native checks settings at build time (nestd --check-config).
BBCLASSEXTEND = "native"
