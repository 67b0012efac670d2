//! The instruction set as plain data: what a PTX file is once it is read.

pub mod copy;
pub mod mbarrier;
pub mod module;
pub mod op;
pub mod operand;
pub mod product;
pub mod slots;
pub mod space;
pub mod special;
pub mod tensor_map;
