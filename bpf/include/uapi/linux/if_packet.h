/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: BCC's own headers include this name and carry what they use. */
