/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How kernel memory is read: by offsets that the loader found in BTF (EP_* macros, in bytes), with no kernel
 * struct in sight, so that one source runs on every kernel.
 */
#pragma once

#define NF_ACCEPT 1
#define IP_CT_NEW 2
#define IP_CT_RELATED 1
#define NFCT_INFOMASK 7UL
#define IPS_CONFIRMED (1UL << 3)
#define EP_AF_INET 2
#define EP_AF_INET6 10
#define EP_TCP 6
#define EP_UDP 17

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/*
 * By number: BCC may put bpf_probe_read in the place of bpf_probe_read_kernel, which a netfilter program is
 * not allowed without CAP_SYS_ADMIN.
 */
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;

/*
 * Reads of a pointer that the verifier knows the type of: one instruction, where read_kernel would be a call.
 * In assembly, since BCC turns a plain dereference into bpf_probe_read.
 */
static __always_inline u64 direct_read64(const void *from, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(from), "i"(offset));
	return value;
}

static __always_inline u8 direct_read8(const void *from, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u8 *)(%1 + %2)" : "=r"(value) : "r"(from), "i"(offset));
	return value;
}

static __always_inline u16 direct_read16(const void *from, const u32 offset)
{
	u64 value;

	asm volatile("%0 = *(u16 *)(%1 + %2)" : "=r"(value) : "r"(from), "i"(offset));
	return value;
}

static __always_inline u32 direct_read32(const void *from, const u32 offset)
{
	u32 value;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(value) : "r"(from), "i"(offset));
	return value;
}

/*
 * Gives memory at an address a type, so that it can be read directly too: the kernel function bpf_rdonly_cast(),
 * which costs nothing. The type is a struct of nothing but u64, EP_WORDS in size. The compiler believes this to
 * be a helper; the loader marks it as what it is. What cannot be read is read as zeros.
 */
#ifdef EP_RDONLY_CAST
static const void *(*rdonly_cast)(u64 address, u32 type) = (void *)EP_RDONLY_CAST;
#endif
