/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: the names in here are for classic BPF. */
