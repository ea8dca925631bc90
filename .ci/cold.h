/* What compiled modules call only when something has gone wrong. Told to be cold, the compiler puts the code around such calls, two fifths of
   it, into a part of its own: what a message touches lies closer together (docs/decisions/compiled-modules.md). Included before everything. */
#include <stddef.h>
struct _object;
__attribute__((cold)) void CPy_AddTraceback(const char *, const char *, int, struct _object *);
__attribute__((cold)) void CPy_TypeErrorTraceback(const char *, const char *, int, struct _object *, const char *, struct _object *);
__attribute__((cold)) void CPy_AttributeError(const char *, const char *, const char *, const char *, int, struct _object *);
__attribute__((cold)) void CPy_TypeError(const char *, struct _object *);
__attribute__((cold)) void CPyError_OutOfMemory(void);
__attribute__((cold)) void CPy_Raise(struct _object *);
__attribute__((cold)) void CPy_Reraise(void);
__attribute__((cold)) void PyErr_SetString(struct _object *, const char *);
/* mypyc calls these, rather than their inline twins, on the way out of an error; the last two only for integers of more than 62 bits. */
__attribute__((cold)) static void CPy_DecRef(struct _object *);
__attribute__((cold)) static void CPy_XDecRef(void *);
__attribute__((cold)) void CPyTagged_DecRef(size_t);
__attribute__((cold)) void CPyTagged_XDecRef(size_t);
