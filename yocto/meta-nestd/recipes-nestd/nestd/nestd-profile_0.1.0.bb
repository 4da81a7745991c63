SUMMARY = "Thresholds and memory of a device for nestd"
DESCRIPTION = "What NESTD_PROFILE says, for the daemon and for its service."
SECTION = "base"

require nestd-source.inc

inherit features_check nestd_profile

LICENSE = "${NESTD_LICENSE}"
LIC_FILES_CHKSUM = "${NESTD_LICENSE_FILES}"

REQUIRED_DISTRO_FEATURES = "systemd"

INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0644 ${S}/systemd/profiles/${NESTD_PROFILE}.conf \
        ${D}${systemd_system_unitdir}/nestd.service.d/10-profile.conf
    install -d ${D}${nonarch_libdir}/nestd/nestd.toml.d
    printf '%s\n' \
        '# NESTD_PROFILE, and the settings with which the models of the image were checked.' \
        '[governor]' 'profile = "${NESTD_PROFILE}"' \
        '[model]' 'context_tokens = ${NESTD_CONTEXT_TOKENS}' \
        '[limits]' 'parallel_requests = ${NESTD_PARALLEL_REQUESTS}' \
        '[elastic]' 'kv = "${NESTD_KV}"' 'prefix_cache_mib = ${NESTD_PREFIX_CACHE_MIB}' 'spill_mib = ${NESTD_SPILL_MIB}' \
        >${D}${nonarch_libdir}/nestd/nestd.toml.d/10-profile.toml
}

PACKAGES = "${PN}"
FILES:${PN} += "${systemd_system_unitdir}/nestd.service.d ${nonarch_libdir}/nestd"
