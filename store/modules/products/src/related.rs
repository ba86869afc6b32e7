//! What goes with a product: asked of a program that is none of ours, and answered without it where it does not help.
//!
//! Nobody waits long for a recommendation, and nothing that it says is believed: products that do not exist are
//! dropped. Whether it is slow, dead, absent or wrong, the catalogue answers.

use std::time::{Duration, Instant};

use modulith::http::Problem;
use modulith::{CallError, Context, Links};
use serde::Serialize;
use store_products_contract::{Product, ProductId, ProductsClient};
use store_recommendations_contract::{RecommendationsClient, RelatedTo};

use crate::catalogue::{CatalogueClient, Neighbours};

#[derive(Clone)]
pub(crate) struct Related {
    products: ProductsClient,
    catalogue: CatalogueClient,
    recommendations: Option<RecommendationsClient>,
    wait: Duration,
}

#[derive(Serialize)]
pub(crate) struct RelatedProducts {
    source: Source,
    products: Vec<Product>,
}

/// Where the products come from.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Recommendations,
    Catalogue,
}

impl Related {
    pub(crate) fn new(links: &Links, wait: Duration) -> Self {
        Self {
            products: links.client(),
            catalogue: links.client(),
            recommendations: links.optional_client(),
            wait,
        }
    }

    /// Products that go with one that exists.
    pub(crate) async fn to(&self, id: ProductId, limit: u32) -> Result<RelatedProducts, Problem> {
        self.products.product(id.clone()).await?;
        let recommended = self.recommended(&id, limit).await;
        if !recommended.is_empty() {
            return Ok(RelatedProducts { source: Source::Recommendations, products: recommended });
        }
        let products = self.catalogue.neighbours(Neighbours { of: id, limit }).await?;
        Ok(RelatedProducts { source: Source::Catalogue, products })
    }

    /// Empty when there is nobody to ask, or no use in the answer.
    async fn recommended(&self, id: &ProductId, limit: u32) -> Vec<Product> {
        let Some(recommendations) = &self.recommendations else {
            return Vec::new();
        };
        let context = Context::current();
        let deadline = context.deadline_or_default().min(Instant::now() + self.wait);
        let asked = recommendations.related(RelatedTo { product: id.clone(), limit });
        let Ok(answered) = (Context { deadline: Some(deadline), ..context }).scope(asked).await else {
            return Vec::new();
        };
        let mut ids: Vec<ProductId> = Vec::new();
        for related in answered {
            if ids.len() < limit as usize && related != *id && !ids.contains(&related) {
                ids.push(related);
            }
        }
        let found: Result<_, CallError<_>> = self.products.products(ids).await;
        found.unwrap_or_default()
    }
}
