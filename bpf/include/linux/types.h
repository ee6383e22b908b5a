/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's integer types, so that neither kernel headers nor linux-libc-dev is needed on a relay. */
#pragma once

typedef unsigned char __u8, u8;
typedef unsigned short __u16, u16;
typedef unsigned int __u32, u32;
typedef unsigned long long __u64, u64;
typedef signed char __s8, s8;
typedef short __s16, s16;
typedef int __s32, s32;
typedef long long __s64, s64;
typedef __u16 __be16, __le16, __sum16;
typedef __u32 __be32, __le32, __wsum;
typedef __u64 __be64, __le64, __aligned_u64;
typedef _Bool bool;
enum { false, true };
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#define __always_inline inline __attribute__((always_inline))
