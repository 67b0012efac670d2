//! What the texts of a task are to be read for: the paper's table of instructions, or the caller's own.

use crate::error::{Error, Result};
use crate::format::hf::read_json;
pub use crate::format::instruction::Instruction;
use std::path::Path;

/// The reference's `task_to_instructions.json` (MTEB task, instruction), which is the paper's table; the twelve parts
/// of CQADupstack share theirs. Every one ends in a colon there, left out here.
const TABLE: [(&str, &str); 56] = [
    (
        "ClimateFEVER",
        "Given a claim about climate change, retrieve documents that support or refute the claim",
    ),
    ("HotpotQA", "Given a multi-hop question, retrieve documents that can help answer the question"),
    ("FEVER", "Given a claim, retrieve documents that support or refute the claim"),
    ("MSMARCO", "Given a web search query, retrieve relevant passages that answer the query"),
    ("DBPedia", "Given a query, retrieve relevant entity descriptions from DBPedia"),
    ("NQ", "Given a question, retrieve Wikipedia passages that answer the question"),
    (
        "QuoraRetrieval",
        "Given a question, retrieve questions that are semantically equivalent to the given question",
    ),
    ("SCIDOCS", "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper"),
    ("TRECCOVID", "Given a query on COVID-19, retrieve documents that answer the query"),
    ("Touche2020", "Given a question, retrieve detailed and persuasive arguments that answer the question"),
    ("SciFact", "Given a scientific claim, retrieve documents that support or refute the claim"),
    ("NFCorpus", "Given a question, retrieve relevant documents that best answer the question"),
    ("ArguAna", "Given a claim, find documents that refute the claim"),
    (
        "CQADupstackRetrieval",
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given question",
    ),
    ("FiQA2018", "Given a financial question, retrieve user replies that best answer the question"),
    ("AskUbuntuDupQuestions", "Retrieve duplicate questions from AskUbuntu forum"),
    ("StackOverflowDupQuestions", "Retrieve duplicate questions from StackOverflow forum"),
    ("SciDocsRR", "Given a title of a scientific paper, retrieve the titles of other relevant papers"),
    ("MindSmallReranking", "Retrieve relevant news articles based on user browsing history"),
    ("Banking77Classification", "Given a online banking query, find the corresponding intents"),
    (
        "EmotionClassification",
        "Classify the emotion expressed in the given Twitter message into one of the six emotions: anger, fear, joy, love, sadness, and surprise",
    ),
    (
        "TweetSentimentExtractionClassification",
        "Classify the sentiment of a given tweet as either positive, negative, or neutral",
    ),
    (
        "AmazonCounterfactualClassification",
        "Classify a given Amazon customer review text as either counterfactual or notcounterfactual",
    ),
    (
        "ImdbClassification",
        "Classify the sentiment expressed in the given movie review text from the IMDB dataset",
    ),
    ("MassiveIntentClassification", "Given a user utterance as query, find the user intents"),
    ("MassiveScenarioClassification", "Given a user utterance as query, find the user scenarios"),
    (
        "MTOPDomainClassification",
        "Classify the intent domain of the given utterance in task-oriented conversation",
    ),
    ("MTOPIntentClassification", "Classify the intent of the given utterance in task-oriented conversation"),
    ("ToxicConversationsClassification", "Classify the given comments as either toxic or not toxic"),
    ("AmazonPolarityClassification", "Classify Amazon reviews into positive or negative sentiment"),
    ("AmazonReviewsClassification", "Classify the given Amazon review into its appropriate rating category"),
    ("TwentyNewsgroupsClustering", "Identify the topic or theme of the given news articles"),
    ("BiorxivClusteringS2S", "Identify the main category of Biorxiv papers based on the titles"),
    ("MedrxivClusteringS2S", "Identify the main category of Medrxiv papers based on the titles"),
    (
        "ArxivClusteringP2P",
        "Identify the main and secondary category of Arxiv papers based on the titles and abstracts",
    ),
    ("ArxivClusteringS2S", "Identify the main and secondary category of Arxiv papers based on the titles"),
    (
        "BiorxivClusteringP2P",
        "Identify the main category of Biorxiv papers based on the titles and abstracts",
    ),
    (
        "MedrxivClusteringP2P",
        "Identify the main category of Medrxiv papers based on the titles and abstracts",
    ),
    ("RedditClustering", "Identify the topic or theme of Reddit posts based on the titles"),
    ("RedditClusteringP2P", "Identify the topic or theme of Reddit posts based on the titles and posts"),
    ("StackExchangeClustering", "Identify the topic or theme of StackExchange posts based on the titles"),
    (
        "StackExchangeClusteringP2P",
        "Identify the topic or theme of StackExchange posts based on the given paragraphs",
    ),
    ("TwitterSemEval2015", "Retrieve tweets that are semantically similar to the given tweet"),
    ("TwitterURLCorpus", "Retrieve tweets that are semantically similar to the given tweet"),
    ("SprintDuplicateQuestions", "Retrieve duplicate questions from Sprint forum"),
    ("STS12", STS),
    ("STS13", STS),
    ("STS14", STS),
    ("STS15", STS),
    ("STS16", STS),
    ("STS17", STS),
    ("STS22", STS),
    ("BIOSSES", STS),
    ("SICK-R", STS),
    ("STSBenchmark", STS),
    ("SummEval", "Given a news summary, retrieve other semantically similar summaries"),
];
const STS: &str = "Retrieve semantically similar text";

/// The paper's instruction for an MTEB task.
pub fn of_paper(task: &str) -> Result<Instruction> {
    let parts = task.starts_with("CQADupstack") && task.ends_with("Retrieval");
    let name = if parts { "CQADupstackRetrieval" } else { task };
    let found = TABLE.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let (_, text) = found.ok_or_else(|| {
        let known = TABLE.map(|(known, _)| known).join(", ");
        Error::usage(format!("no instruction is known for task {task:?}, only for {known}"))
    })?;
    Ok(Instruction { query: format!("{text}:"), document: String::new() })
}

/// The paper's MTEB task that a set of this name is: `SciFact`, `scifact`, `sick-r.test`, `banking77`, `stsb`.
pub fn paper_task(name: &str) -> Option<&'static str> {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let name = match plain(name.strip_suffix(".test").unwrap_or(name)).as_str() {
        "stsb" => "stsbenchmark".to_string(),
        other => other.to_string(),
    };
    let is_named = |task: &&str| {
        let kinds = ["Classification", "Clustering", "Retrieval"];
        let short = kinds.iter().find_map(|kind| task.strip_suffix(kind));
        plain(task) == name || short.is_some_and(|short| plain(short) == name)
    };
    TABLE.iter().map(|(task, _)| *task).find(is_named)
}

/// The instruction for `task` in a JSON file of the reference's form, `{"task": "instruction", …}`, where an instruction
/// may be `{"query": …, "document": …}` too.
pub fn of_file(path: &Path, task: &str) -> Result<Instruction> {
    let json = read_json(path)?;
    let Some(fields) = json.as_object() else {
        return Err(Error::file(path, r#"a JSON object was wanted, {"task": "instruction", …}"#));
    };
    let Some(value) = fields.get(task) else {
        let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let what = format!("no instruction for {task:?}, only for {known}; add {task:?}: \"\" for none");
        return Err(Error::file(path, what));
    };
    Instruction::of(value).ok_or_else(|| {
        let wanted = r#"a string or {"query": …, "document": …} was wanted"#;
        Error::file(path, format!("{task:?} is {value}; {wanted}"))
    })
}
