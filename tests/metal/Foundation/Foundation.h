// Of Apple's Foundation, what native/backend/metal uses, by its documentation: for type checks where there is no macOS.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef unsigned long NSUInteger;
typedef signed char   BOOL_type;
#define YES ((bool)1)
#define NO ((bool)0)
#define nil nullptr

__attribute__((objc_root_class)) @interface NSObject
+ (instancetype)alloc;
- (instancetype)init;
@end

@protocol NSObject
@end

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char *)text;
@property(readonly) const char * UTF8String;
@end

@interface NSError : NSObject
@property(readonly) NSString * localizedDescription;
@end

@interface NSProcessInfo : NSObject
+ (NSProcessInfo *)processInfo;
@property(readonly) NSString * operatingSystemVersionString;
@end
